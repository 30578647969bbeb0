"""Autoencoders of each kind at tiny size, with the same random weights each time."""

import torch
from diffusers import AutoencoderKL

from qamdt.models.autoencoder_waveform import AutoencoderWaveform


def build_autoencoder_kl(*, mid_block_add_attention=True):
    """An autoencoder of spectrograms with 2 channels, one latent frame for 640 samples at the published front end."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        latent_channels=2,
        norm_num_groups=2,
        mid_block_add_attention=mid_block_add_attention,
    )
    return autoencoder.eval()


def build_autoencoder_waveform(latent_channels, latents_mean=None, latents_std=None):
    """An autoencoder of waveforms with the default rate: one latent frame for 1280 samples."""
    torch.manual_seed(0)
    autoencoder = AutoencoderWaveform(
        latent_channels=latent_channels,
        encoder_mel_bins=(40, 16),
        encoder_dims=(16, 24),
        encoder_layers=(1, 1),
        decoder_dims=(24, 16, 16),
        decoder_layers=(1, 1, 1),
        latents_mean=latents_mean,
        latents_std=latents_std,
    )
    return autoencoder.eval()


def build_fast_autoencoder_waveform():
    """An autoencoder of waveforms with the rate and the 2 channels of `build_autoencoder_kl`."""
    torch.manual_seed(0)
    autoencoder = AutoencoderWaveform(
        hop_length=160,
        n_fft=320,
        latent_channels=2,
        encoder_windows=(512,),
        encoder_mel_bins=(16,),
        encoder_hop_length=320,
        encoder_dims=(8, 8),
        encoder_layers=(1, 1),
        decoder_dims=(8, 8, 8),
        decoder_layers=(1, 1, 1),
        decoder_factors=(2, 2),
    )
    return autoencoder.eval()
