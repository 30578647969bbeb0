"""From latents to sound in bounded memory: long clips are decoded in pieces, each with some context on both sides.

Shapes: latents `(batch, channels, latent_frames, latent_bins)`, log-mel `(batch, 1, frames, mel_bins)`, waveforms
`(batch, samples)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn

from qamdt.models.autoencoder_waveform import AutoencoderWaveform


def vae_scale_factor(vae: nn.Module) -> int:
    """How many mel frames (and mel bins) one latent frame (and bin) stands for."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def never_tile(vae: nn.Module) -> None:
    """Makes `enable_tiling` of a `diffusers.AutoencoderKL` harmless.

    It would cut spectrograms into squares of a few latents, for they are far smaller than the pictures that it is made
    for. What it is there for, bounded memory, the pieces of this module give.
    """
    vae.tile_sample_min_size = vae.tile_latent_min_size = sys.maxsize


@torch.no_grad()
def decode_latents(
    vae: nn.Module, latents: torch.Tensor, *, chunk_frames: int = 512, context_frames: int = 16
) -> torch.Tensor:
    """Decodes scaled latents into log-mel spectrograms.

    Args:
        vae: A `diffusers.AutoencoderKL`.
        latents: Latents of shape `(batch, channels, latent_frames, latent_bins)`, scaled by `scaling_factor`.
        chunk_frames: Latent frames decoded at a time; memory grows with it, not with the clip.
        context_frames: Latent frames of context on each side of a chunk.

    Returns:
        Log-mel of shape `(batch, 1, latent_frames * vae_scale_factor, mel_bins)`.
    """
    raw_latents = latents / vae.config.scaling_factor
    never_tile(vae)

    def decode(chunk: torch.Tensor) -> torch.Tensor:
        return vae.decode(chunk.transpose(1, 2)).sample.transpose(1, 2)

    mel_spectrogram = in_chunks(
        decode, raw_latents.transpose(1, 2), vae_scale_factor(vae), chunk_frames, context_frames
    )
    return mel_spectrogram.transpose(1, 2)


@torch.no_grad()
def mel_to_waveform(
    vocoder: nn.Module, mel_spectrogram: torch.Tensor, *, chunk_frames: int = 2048, context_frames: int = 32
) -> torch.Tensor:
    """Turns log-mel spectrograms into waveforms.

    Args:
        vocoder: Maps `(batch, frames, mel_bins)` to `(batch, samples)`: `ISTFTVocoder` or `SpeechT5HifiGan`.
        mel_spectrogram: Log-mel of shape `(batch, 1, frames, mel_bins)`.
        chunk_frames: Mel frames vocoded at a time.
        context_frames: Mel frames of context on each side of a chunk.

    Returns:
        Waveforms of shape `(batch, frames * hop_length)` in float32.
    """
    frames = mel_spectrogram[:, 0]
    hop_length = samples_per_frame(vocoder)

    def vocode(chunk: torch.Tensor) -> torch.Tensor:
        # HiFi-GAN drops the batch dimension of a single clip and adds a few samples at the end.
        return vocoder(chunk).reshape(len(chunk), -1)[:, : chunk.shape[1] * hop_length]

    return in_chunks(vocode, frames, hop_length, chunk_frames, context_frames).float()


@torch.no_grad()
def latents_to_waveform(
    autoencoder: AutoencoderWaveform, latents: torch.Tensor, *, chunk_frames: int = 512, context_frames: int = 32
) -> torch.Tensor:
    """Decodes scaled latents with an autoencoder of waveforms.

    Args:
        autoencoder: The autoencoder.
        latents: Latents of shape `(batch, channels, latent_frames, 1)`, scaled by `scaling_factor`.
        chunk_frames: Latent frames decoded at a time.
        context_frames: Latent frames of context on each side of a chunk.

    Returns:
        Waveforms of shape `(batch, latent_frames * samples_per_latent_frame)` in float32.
    """
    raw_latents = latents / autoencoder.config.scaling_factor

    def decode(chunk: torch.Tensor) -> torch.Tensor:
        return autoencoder.decode(chunk.transpose(1, 2)).sample

    return in_chunks(
        decode, raw_latents.transpose(1, 2), autoencoder.samples_per_latent_frame, chunk_frames, context_frames
    )


def samples_per_frame(vocoder: nn.Module) -> int:
    """The hop of the spectrogram: given as such, or as the product of HiFi-GAN's upsampling rates."""
    if "hop_length" in vocoder.config:
        return vocoder.config.hop_length
    return int(torch.tensor(vocoder.config.upsample_rates).prod())


def in_chunks(
    convert: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    outputs_per_frame: int,
    chunk_frames: int,
    context_frames: int,
) -> torch.Tensor:
    """Applies `convert`, which turns one frame along dimension 1 into `outputs_per_frame`, chunk by chunk."""
    num_frames = inputs.shape[1]
    if num_frames <= chunk_frames + 2 * context_frames:
        return convert(inputs)
    pieces = []
    for start in range(0, num_frames, chunk_frames):
        stop = min(start + chunk_frames, num_frames)
        first, last = max(0, start - context_frames), min(num_frames, stop + context_frames)
        converted = convert(inputs[:, first:last])
        pieces.append(converted[:, (start - first) * outputs_per_frame : (stop - first) * outputs_per_frame])
    return torch.cat(pieces, dim=1)
