"""All styles by their tag names."""

from data_prep.composer.classical_styles import CLASSICAL_STYLES
from data_prep.composer.electronic_styles import ELECTRONIC_STYLES
from data_prep.composer.jazz_styles import JAZZ_STYLES
from data_prep.composer.popular_styles import POPULAR_STYLES


STYLES = {style.name: style for style in (*POPULAR_STYLES, *ELECTRONIC_STYLES, *JAZZ_STYLES, *CLASSICAL_STYLES)}
