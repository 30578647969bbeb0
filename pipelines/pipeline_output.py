"""What a call of a pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import AudioPipelineOutput

from qamdt.music import Music


@dataclass
class QAMDTPipelineOutput(AudioPipelineOutput):
    """Waveforms, and what is played in them.

    Args:
        audios: Waveforms `(batch, samples)`, or latents `(batch, channels, latent_frames, latent_bins)`.
        music: For each of them the tempo, metre, key and chords that the network was told, as asked for, read from
            the prompt or planned; `None` for a network that knows nothing of music.
        sampling_rate: Samples per second, in Hz.
    """

    music: list[Music] | None = None
    sampling_rate: int | None = None
