"""CLAP behind one small interface: how well does a sentence describe a sound?

Three kinds of models stand behind it: the small one that ships with this project, every `ClapModel` of transformers
(a folder or a Hub id), and the original LAION checkpoints (extra `laion-clap`). Long clips are cut into windows that
neither overlap nor move, so the same clip has the same embedding always; CLAP's own random crops are never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import soxr
import torch


if TYPE_CHECKING:
    from whisq.modeling_clap import MiniClap

EMBEDDED = "embedded"
MAX_TEXT_TOKENS = 128


class Clap(Protocol):
    """What caption refinement needs of a CLAP model.

    Attributes:
        name: Which model and which weights; goes into results and fingerprints.
        sampling_rate: Rate in Hz that it listens at; other rates are resampled.
    """

    name: str
    sampling_rate: int

    def embed_audio(self, waveforms: Sequence[np.ndarray], sampling_rate: int) -> np.ndarray:
        """Maps mono waveforms, each `(samples,)`, to embeddings `(batch, E)` of unit length."""

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Maps sentences to embeddings `(batch, E)` of unit length."""
