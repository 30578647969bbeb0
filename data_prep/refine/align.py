"""How similar a caption must be to the audio, given or taken from the data set itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The thresholds of stages 2 and 3, all of them cosines of CLAP embeddings.

    Args:
        audio_text: A candidate less similar to the audio is dropped (rho 1).
        duplicate: A candidate at least this similar to an original, text to text, says the same (rho 2).
        max_loss: How much less similar to the audio than the best kept candidate the fused caption may be.
    """

    audio_text: float
    duplicate: float = 0.95
    max_loss: float = 0.05
