"""An autoencoder from waveform to latents to waveform: log spectra in, ConvNeXt, one inverse Fourier transform out.

A mel autoencoder with a vocoder behind it loses low notes twice: mel bands lie further apart than semitones, and two
networks each blur a little. Here one network hears a long window, which tells low notes apart, beside a short one, which
tells when they begin, and one loss is taken on the sound. Nothing runs faster than `sampling_rate / hop_length`.

Shapes: B batch, S samples, C latent channels, T latent frames, D width, K frequency bins (n_fft // 2 + 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn

from qamdt.audio import LogMel
from qamdt.models.vocoder_istft import ConvNeXtBlock, inverse_stft


CONTRAST_BANDS = 9  # a band and its neighbours
CONTRAST_GAIN = 3.0  # brings contrasts to the size of the bands


class ConvNeXtStage(nn.Module):
    """ConvNeXt blocks of one width at one frame rate.

    Frames are normalised first: what a linear map makes of the frames before may be many times larger than what a block
    adds, and the blocks would then change nothing.

    Args:
        dim: Width of the frame features.
        num_layers: Number of blocks.
    """

    def __init__(self, dim: int, num_layers: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(dim, hidden_dim=3 * dim, layer_scale=1 / num_layers) for _ in range(num_layers)
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, frames, dim)` to the same shape."""
        hidden_states = self.norm(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


class WaveformEncoder(nn.Module):
    """Log spectra of a long and of a short window to the parameters of the posterior.

    Args:
        sampling_rate: Rate of the waveforms in Hz.
        windows: Window lengths in samples.
        num_mel_bins: Bands of each window.
        hop_length: Samples per spectral frame.
        dims: Width at the rate of the spectra and at that of the latents.
        num_layers: Blocks at each of the two rates.
        stride: Spectral frames per latent frame.
        latent_channels: Channels of the latents.
    """

    def __init__(
        self,
        sampling_rate: int,
        windows: Sequence[int],
        num_mel_bins: Sequence[int],
        hop_length: int,
        dims: Sequence[int],
        num_layers: Sequence[int],
        stride: int,
        latent_channels: int,
    ):
        super().__init__()
        self.spectra = nn.ModuleList(
            LogMel(sampling_rate, n_fft, hop_length, bins, max_frequency_hz=sampling_rate / 2)
            for n_fft, bins in zip(windows, num_mel_bins, strict=True)
        )
        self.embed = nn.Conv1d(2 * sum(num_mel_bins), dims[0], kernel_size=7, padding=3)
        self.stage_in = ConvNeXtStage(dims[0], num_layers[0])
        self.reduce = nn.Linear(stride * dims[0], dims[1])
        self.stage_out = ConvNeXtStage(dims[1], num_layers[1])
        self.norm = nn.LayerNorm(dims[1], eps=1e-6)
        self.head = nn.Linear(dims[1], 2 * latent_channels)
        self.stride = stride

    def forward(self, waveforms: torch.Tensor, mel_mean: float, mel_std: float) -> torch.Tensor:
        """Maps waveforms `(batch, samples)` to means and log variances `(batch, 2 * channels, latent_frames)`."""
        spectra = [(spectrum(waveforms.float()).squeeze(1) - mel_mean) / mel_std for spectrum in self.spectra]
        bands = torch.cat([*spectra, *map(_contrast, spectra)], dim=-1).to(
            self.head.weight.dtype
        )  # (B, frames, bands)
        hidden_states = self.stage_in(self.embed(bands.transpose(1, 2)).transpose(1, 2))
        hidden_states = self.reduce(hidden_states.unflatten(1, (-1, self.stride)).flatten(2))  # (B, T, D)
        return self.head(self.norm(self.stage_out(hidden_states))).transpose(1, 2)


def _contrast(bands: torch.Tensor) -> torch.Tensor:
    """How far each band of `(batch, frames, bands)` stands out from its neighbours: partials, without the loudness.

    In the bands themselves notes are a hundredth of the variance; here they are most of it.
    """
    neighbours = nn.functional.avg_pool1d(bands, CONTRAST_BANDS, 1, CONTRAST_BANDS // 2, count_include_pad=False)
    return CONTRAST_GAIN * (bands - neighbours)


class WaveformDecoder(nn.Module):
    """Latents to magnitude and phase of every bin of a short-time Fourier transform.

    Args:
        latent_channels: Channels of the latents.
        dims: Width at each frame rate, the latents' own first.
        num_layers: Blocks at each frame rate.
        factors: How many times faster each rate is than the one before.
        n_fft: Window and FFT length of the synthesis, in samples.
    """

    def __init__(
        self, latent_channels: int, dims: Sequence[int], num_layers: Sequence[int], factors: Sequence[int], n_fft: int
    ):
        super().__init__()
        self.embed = nn.Conv1d(latent_channels, dims[0], kernel_size=7, padding=3)
        self.stages = nn.ModuleList(ConvNeXtStage(dim, layers) for dim, layers in zip(dims, num_layers, strict=True))
        self.expands = nn.ModuleList(
            nn.Linear(dim, factor * next_dim) for dim, next_dim, factor in zip(dims, dims[1:], factors, strict=False)
        )
        self.factors = tuple(factors)
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], n_fft + 2)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps latents `(batch, channels, latent_frames)` to a complex spectrum `(batch, K, frames)`."""
        hidden_states = self.stages[0](self.embed(latents).transpose(1, 2))
        for stage, expand, factor in zip(self.stages[1:], self.expands, self.factors, strict=True):
            hidden_states = expand(hidden_states).unflatten(2, (factor, -1)).flatten(1, 2)
            hidden_states = stage(hidden_states)
        prediction = self.head(self.norm(hidden_states)).float()
        # Magnitudes above e^6 do not occur at peak 1; the limit keeps an untrained head from overflowing.
        log_magnitude, phase = prediction.transpose(1, 2).chunk(2, dim=1)  # (B, K, N) each
        return torch.polar(log_magnitude.clamp(max=6.0).exp(), phase)


class AutoencoderWaveform(ModelMixin, ConfigMixin):
    """Variational autoencoder of mono waveforms, with the interface of diffusers' audio autoencoders.

    Latents have the shape `(batch, channels, latent_frames, 1)`, so that a network for mel latents takes them as well.

    Args:
        sampling_rate: Rate of the waveforms in Hz.
        hop_length: Samples between frames of the synthesis.
        n_fft: Window and FFT length of the synthesis, in samples.
        latent_channels: Channels of the latents.
        encoder_windows: Window lengths of the input spectra, in samples.
        encoder_mel_bins: Bands of each.
        encoder_hop_length: Samples between frames of the input spectra.
        encoder_dims: Width at the rate of the spectra and at that of the latents.
        encoder_layers: Blocks at each of them.
        decoder_dims: Width at each frame rate of the decoder, from the latents' to the synthesis' own.
        decoder_layers: Blocks at each of them.
        decoder_factors: How many times faster each rate is than the one before.
        mel_mean: Mean of the log-mel values in training data, subtracted first.
        mel_std: Their standard deviation, divided by.
        latents_mean: Mean of each channel of the latents in training data, taken out of them; `None` counts as zeros.
        latents_std: Their standard deviation, likewise, so that every channel has unit variance; `None` counts as ones.
        scaling_factor: What a diffusion model multiplies latents with: they have unit variance as they are.
    """

    @register_to_config
    def __init__(
        self,
        sampling_rate: int = 16_000,
        hop_length: int = 160,
        n_fft: int = 1024,
        latent_channels: int = 64,
        encoder_windows: tuple[int, ...] = (2048, 512),
        encoder_mel_bins: tuple[int, ...] = (160, 64),
        encoder_hop_length: int = 320,
        encoder_dims: tuple[int, int] = (256, 320),
        encoder_layers: tuple[int, int] = (3, 3),
        decoder_dims: tuple[int, ...] = (384, 320, 256),
        decoder_layers: tuple[int, ...] = (5, 4, 4),
        decoder_factors: tuple[int, ...] = (4, 2),
        mel_mean: float = -6.0,
        mel_std: float = 3.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        self.samples_per_latent_frame = hop_length
        for factor in decoder_factors:
            self.samples_per_latent_frame *= factor
        if self.samples_per_latent_frame % encoder_hop_length:
            raise ValueError(
                "`hop_length` times all `decoder_factors` must be a multiple of `encoder_hop_length`, got "
                f"{self.samples_per_latent_frame} and {encoder_hop_length}."
            )
        self.encoder = WaveformEncoder(
            sampling_rate,
            encoder_windows,
            encoder_mel_bins,
            encoder_hop_length,
            encoder_dims,
            encoder_layers,
            self.samples_per_latent_frame // encoder_hop_length,
            latent_channels,
        )
        self.decoder = WaveformDecoder(latent_channels, decoder_dims, decoder_layers, decoder_factors, n_fft)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def encode(self, waveforms: torch.Tensor) -> AutoencoderKLOutput:
        """Encodes waveforms `(batch, samples)`; what is missing to a whole latent frame is filled with silence.

        Returns:
            An output whose `latent_dist` is over latents `(batch, channels, latent_frames, 1)`.
        """
        if waveforms.ndim != 2 or waveforms.shape[1] == 0:
            raise ValueError(f"`waveforms` must have shape (batch, samples), got {tuple(waveforms.shape)}.")
        shortest = max(self.config.encoder_windows) // self.samples_per_latent_frame + 1
        num_frames = max(-(-waveforms.shape[1] // self.samples_per_latent_frame), shortest)
        missing = num_frames * self.samples_per_latent_frame - waveforms.shape[1]
        moments = self.encoder(nn.functional.pad(waveforms, (0, missing)), self.config.mel_mean, self.config.mel_std)
        mean, log_variance = moments.chunk(2, dim=1)  # (B, C, T) each
        channel_mean, channel_std = self._channel_statistics(mean)
        moments = torch.cat([(mean - channel_mean) / channel_std, log_variance - 2 * channel_std.log()], dim=1)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments.unsqueeze(-1)))

    def decode(self, latents: torch.Tensor) -> DecoderOutput:
        """Decodes latents `(batch, channels, latent_frames, 1)`.

        Returns:
            An output whose `sample` holds waveforms `(batch, samples)` in float32.
        """
        channels = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels or latents.shape[3] != 1:
            raise ValueError(
                f"`latents` must have shape (batch, {channels}, latent_frames, 1), got {tuple(latents.shape)}."
            )
        channel_mean, channel_std = self._channel_statistics(latents)
        spectrum = self.decoder(latents.squeeze(-1) * channel_std + channel_mean)
        return DecoderOutput(sample=inverse_stft(spectrum, self.window, self.config.hop_length))

    def _channel_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel as the network itself has it, `(channels, 1)`."""
        mean, std = self.config.latents_mean, self.config.latents_std
        zeros = torch.zeros(self.config.latent_channels, 1)
        mean = zeros if mean is None else torch.tensor(mean)[:, None]
        std = zeros + 1 if std is None else torch.tensor(std)[:, None]
        return mean.to(like), std.to(like)

    def forward(self, waveforms: torch.Tensor) -> DecoderOutput:
        """Encodes and decodes waveforms `(batch, samples)`, through the mean of the posterior."""
        sample = self.decode(self.encode(waveforms).latent_dist.mode()).sample
        return DecoderOutput(sample=sample[:, : waveforms.shape[1]])
