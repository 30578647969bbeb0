"""The words for quality, decided here and nowhere else: the level that each asks for, its text, and where it begins.

Nothing is imported, so that a command knows its words before it loads torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


UNKNOWN_LEVEL = 0
NUM_LEVELS = 5
MIN_SCORE, MAX_SCORE = 1.0, 5.0


@dataclass(frozen=True, kw_only=True)
class QualityWord:
    """What a word stands for.

    Args:
        level: The level that it asks for, 1 to 5.
        begins_at_sigma: From where on scores are called so, in standard deviations from the mean of a training set.
        begins_at_share: The same as a share of the clips, where scores are too far from a bell.
    """

    level: int
    begins_at_sigma: float
    begins_at_share: float


# From the worst to the best. Saved statistics name the words that their model was trained with.
QUALITY_WORDS = {
    "low": QualityWord(level=1, begins_at_sigma=-math.inf, begins_at_share=0.0),
    "medium": QualityWord(level=3, begins_at_sigma=-1.25, begins_at_share=1 / 3),
    "high": QualityWord(level=5, begins_at_sigma=1.25, begins_at_share=2 / 3),
}
# The words of the published QA-MDT, and of statistics that were saved without.
PUBLISHED_WORDS = ("low", "medium", "high")


def quality_prefix(word: str) -> str:
    """The text put in front of a caption: `"high"` gives `"high quality, "`."""
    if word not in QUALITY_WORDS:
        raise ValueError(f"`word` must be one of {sorted(QUALITY_WORDS)}, got {word!r}.")
    return f"{word} quality, "


def asks_for_best(quality: object) -> bool:
    """Whether a quality is the word for the best there is."""
    return quality == list(QUALITY_WORDS)[-1]


def list_words(words: Iterable[str] = QUALITY_WORDS, *, quote: str = '"') -> str:
    """Words for a message, the best first."""
    return ", ".join(f"{quote}{word}{quote}" for word in reversed(list(words)))
