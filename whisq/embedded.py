"""The models that ship with the package: the CLAP with its audio tower, and the scorer."""

from __future__ import annotations

import functools
from pathlib import Path

from qamdt.complete_weights import load_complete
from whisq.modeling_audio_tower import AudioTower
from whisq.modeling_clap import MiniClap


WEIGHTS_DIR = Path(__file__).resolve().parent / "weights"
CLAP_DIR = WEIGHTS_DIR / "clap-mini"
SCORER_DIR = WEIGHTS_DIR / "whisq-mini"


@functools.cache
def load_clap() -> MiniClap:
    """Loads the embedded CLAP, in evaluation mode; loaded once per process.

    Raises:
        FileNotFoundError: This installation came without the weights.
    """
    if not (CLAP_DIR / "config.json").is_file():
        raise FileNotFoundError(
            f"The embedded CLAP is missing: {str(CLAP_DIR)!r} holds no config.json. Reinstall the package, or name "
            "another model by folder or Hub id."
        )
    return load_complete(MiniClap, CLAP_DIR).eval().requires_grad_(False)


def load_audio_tower() -> AudioTower:
    """The audio encoder of the embedded CLAP, on which the embedded scorer stands."""
    return load_clap().audio_tower
