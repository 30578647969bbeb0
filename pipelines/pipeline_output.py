"""What a call of a pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusers import AudioPipelineOutput

from qamdt.music import Music


if TYPE_CHECKING:
    from pipelines.selection import Choice
    from whisq.scorer import ClipScore


@dataclass
class QAMDTPipelineOutput(AudioPipelineOutput):
    """Waveforms, and what is played in them.

    Args:
        audios: Waveforms `(batch, samples)`, or latents `(batch, channels, latent_frames, latent_bins)`.
        music: For each of them the tempo, metre, key and chords that the network was told, as asked for, read from
            the prompt or planned; `None` for a network that knows nothing of music.
        scores: For each of them what WhisQ says, as a whole and along the clip, with `return_scores`.
        choices: For each prompt what was kept of the waveforms made for it, with `rank_by`.
        sampling_rate: Samples per second, in Hz.
    """

    music: list[Music] | None = None
    scores: list[ClipScore] | None = None
    choices: list[Choice] | None = None
    sampling_rate: int | None = None
