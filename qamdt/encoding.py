"""From sound to latents, the way back of `qamdt.decoding`: in bounded memory too, where that is asked for.

Shapes: waveforms `(batch, samples)`, log-mel `(batch, 1, frames, mel_bins)`, latents
`(batch, channels, latent_frames, latent_bins)`.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from qamdt.audio import LogMel
from qamdt.decoding import in_chunks, never_tile, vae_scale_factor


def samples_per_latent_frame(vae: nn.Module, log_mel: LogMel | None = None) -> int:
    """How many samples one latent frame stands for, with arguments as for `encode_waveforms`."""
    return vae.samples_per_latent_frame if log_mel is None else log_mel.hop_length * vae_scale_factor(vae)


@torch.no_grad()
def encode_waveforms(
    vae: nn.Module,
    waveforms: torch.Tensor,
    log_mel: LogMel | None = None,
    *,
    chunk_frames: int | None = None,
    context_frames: int = 16,
) -> DiagonalGaussianDistribution:
    """Encodes waveforms; what is missing to a whole latent frame is filled with silence.

    Args:
        vae: An autoencoder of log-mel spectrograms (`diffusers.AutoencoderKL`) or of waveforms (`AutoencoderWaveform`).
        waveforms: Waveforms of shape `(batch, samples)`, on the device of `vae`, as loud as those that it was trained
            on (`qamdt.audio.normalize_waveform`).
        log_mel: What the spectrograms are computed with, on the same device; `None` for an autoencoder of waveforms.
        chunk_frames: Latent frames encoded at a time; all at once when `None`.
        context_frames: Latent frames of context on each side of a chunk.

    Returns:
        The posterior, whose mean and samples are latents without the autoencoder's scaling.
    """
    samples_per_frame = samples_per_latent_frame(vae, log_mel)
    waveforms = nn.functional.pad(waveforms, (0, -waveforms.shape[1] % samples_per_frame))
    if log_mel is None:
        frames = waveforms.unflatten(1, (-1, samples_per_frame))  # (B, T, samples)
    else:
        never_tile(vae)
        mel_spectrogram = log_mel(waveforms).to(vae.dtype)
        frames = mel_spectrogram[:, 0].unflatten(1, (-1, vae_scale_factor(vae)))  # (B, T, frames, mel_bins)

    def encode(chunk: torch.Tensor) -> torch.Tensor:
        heard = chunk.flatten(1, 2)
        posterior = vae.encode(heard if log_mel is None else heard.unsqueeze(1)).latent_dist
        return posterior.parameters.transpose(1, 2)  # (B, T, 2 C, F)

    chunk_frames = frames.shape[1] if chunk_frames is None else chunk_frames
    return DiagonalGaussianDistribution(in_chunks(encode, frames, 1, chunk_frames, context_frames).transpose(1, 2))
