"""A light vocoder: ConvNeXt blocks at the frame rate, then one inverse Fourier transform.

All layers run at 100 frames a second and only the inverse STFT reaches 16 000 samples a second, which makes it
about a hundred times cheaper than a HiFi-GAN of transposed convolutions (Vocos, arXiv 2306.00814).

Shapes: B batch, N frames, M mel bins, D width, K frequency bins (n_fft // 2 + 1).
"""

from __future__ import annotations

import functools

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from qamdt.audio import LogMel


class ConvNeXtBlock(nn.Module):
    """Residual block: depthwise convolution over time, then a pointwise feed-forward network.

    Args:
        dim: Width of the frame features.
        hidden_dim: Width inside the feed-forward network.
        layer_scale: Initial value of the learned scale of the residual branch.
    """

    def __init__(self, dim: int, hidden_dim: int, layer_scale: float):
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.expand = nn.Linear(dim, hidden_dim)
        self.contract = nn.Linear(hidden_dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(batch, frames, dim)` to the same shape."""
        branch = self.depthwise(hidden_states.transpose(1, 2)).transpose(1, 2)
        branch = self.contract(nn.functional.gelu(self.expand(self.norm(branch))))
        return hidden_states + self.scale * branch


class ISTFTVocoder(ModelMixin, ConfigMixin):
    """Turns log-mel spectrograms into waveforms by predicting magnitude and phase of every STFT bin.

    Called like `transformers.SpeechT5HifiGan`: `(batch, frames, mel_bins)` in, `(batch, samples)` out, with
    `samples = frames * hop_length`.

    Args:
        sampling_rate: Rate of the waveforms in Hz.
        num_mel_bins: Mel bins of the input.
        n_fft: Window and FFT length of the synthesis, in samples.
        hop_length: Samples per frame; the hop of the mel spectrogram.
        dim: Width of the frame features.
        num_layers: Number of ConvNeXt blocks.
        mel_mean: Mean of the log-mel values in training data, subtracted first.
        mel_std: Their standard deviation, divided by.
        loudness_window: Frames over which the sound is given the loudness of the spectrogram; 0 leaves it as it comes.
            Needs the spectrogram of `qamdt.audio.LogMel`.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        sampling_rate: int = 16_000,
        num_mel_bins: int = 64,
        n_fft: int = 1024,
        hop_length: int = 160,
        dim: int = 320,
        num_layers: int = 6,
        mel_mean: float = -5.0,
        mel_std: float = 3.0,
        loudness_window: int = 17,
    ):
        super().__init__()
        self.embed = nn.Conv1d(num_mel_bins, dim, kernel_size=7, padding=3)
        self.embed_norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(dim, hidden_dim=3 * dim, layer_scale=1 / num_layers) for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, n_fft + 2)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, mel_spectrogram: torch.Tensor) -> torch.Tensor:
        """Maps log-mel frames `(batch, frames, mel_bins)` to waveforms `(batch, samples)` in float32."""
        if mel_spectrogram.ndim != 3 or mel_spectrogram.shape[2] != self.config.num_mel_bins:
            raise ValueError(
                f"`mel_spectrogram` must have shape (batch, frames, {self.config.num_mel_bins}), "
                f"got {tuple(mel_spectrogram.shape)}."
            )
        normalized = (mel_spectrogram - self.config.mel_mean) / self.config.mel_std
        hidden_states = self.embed(normalized.transpose(1, 2)).transpose(1, 2)  # (B, N, D)
        hidden_states = self.embed_norm(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        prediction = self.head(self.final_norm(hidden_states)).float()  # (B, N, 2K)

        # Magnitudes above e^6 do not occur at peak 1; the limit keeps an untrained head from overflowing.
        log_magnitude, phase = prediction.transpose(1, 2).chunk(2, dim=1)  # (B, K, N) each
        spectrum = torch.polar(log_magnitude.clamp(max=6.0).exp(), phase)
        waveforms = inverse_stft(spectrum, self.window, self.config.hop_length)
        return self.match_loudness(waveforms, mel_spectrogram) if self.config.loudness_window else waveforms

    def match_loudness(self, waveforms: torch.Tensor, mel_spectrogram: torch.Tensor) -> torch.Tensor:
        """Gives waveforms `(batch, samples)` the loudness, over time, of log-mel frames `(batch, frames, mel_bins)`.

        Phases that do not fit together add up to more or less than they should. The gain is that of the energies over
        `loudness_window` frames, at most a factor of two either way.
        """
        config, window = self.config, self.config.loudness_window
        log_mel = _log_mel(config.sampling_rate, config.hop_length, config.num_mel_bins, waveforms.device)
        if waveforms.shape[1] <= log_mel.n_fft:
            return waveforms  # too short to measure
        energies = [
            nn.functional.avg_pool1d(
                ((2 * mel.float()).exp() @ log_mel.bins_per_band)[:, None],
                window,
                stride=1,
                padding=window // 2,
                count_include_pad=False,
            )
            for mel in (mel_spectrogram, log_mel(waveforms)[:, 0])
        ]
        gain = (energies[0] / energies[1]).sqrt().clamp(0.5, 2.0)  # (B, 1, N)
        return waveforms * nn.functional.interpolate(gain, size=waveforms.shape[1], mode="linear")[:, 0]


@functools.lru_cache(maxsize=4)
def _log_mel(sampling_rate: int, hop_length: int, num_mel_bins: int, device: torch.device) -> LogMel:
    """The spectrogram that loudness is measured with, in float32 whatever the precision of the vocoder."""
    with torch.inference_mode(False):  # or it could not be used in training any more
        return LogMel(sampling_rate, hop_length=hop_length, num_mel_bins=num_mel_bins).to(device)


def inverse_stft(spectrum: torch.Tensor, window: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Overlap-adds frames `(batch, frequency_bins, frames)` into waveforms `(batch, frames * hop_length)` in float32.

    Frame `i` is centred on the middle of hop `i`, as in `qamdt.audio.LogMel`.

    Args:
        spectrum: Complex spectrum.
        window: Window of the synthesis `(n_fft,)`.
        hop_length: Samples between frames.
    """
    window, n_fft = window.float(), window.shape[0]
    frames = torch.fft.irfft(spectrum, n=n_fft, dim=1) * window[:, None]  # (B, n_fft, N)
    waveforms = overlap_add(frames.transpose(1, 2), hop_length)
    envelope = overlap_add(window.square().expand(1, spectrum.shape[2], n_fft), hop_length)
    padding = (n_fft - hop_length) // 2
    samples = slice(padding, padding + spectrum.shape[2] * hop_length)
    return waveforms[:, samples] / envelope[:, samples].clamp(min=1e-8)


def overlap_add(frames: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Sums frames `(batch, frames, frame_length)`, each `hop_length` samples after the one before.

    Every frame is cut into pieces of one hop; piece `k` of all frames is added in one shifted block.
    """
    num_pieces = -(-frames.shape[2] // hop_length)
    frames = nn.functional.pad(frames, (0, num_pieces * hop_length - frames.shape[2]))
    pieces = frames.unflatten(2, (num_pieces, hop_length))  # (B, N, num_pieces, hop)
    shifted = [nn.functional.pad(pieces[:, :, k], (0, 0, k, num_pieces - 1 - k)) for k in range(num_pieces)]
    return torch.stack(shifted).sum(dim=0).flatten(1)  # (B, (N + num_pieces - 1) * hop)
