"""What the encoders hear: waveforms at 16 kHz, levelled, and the log-mel spectrogram that the small audio tower sees.

Shapes: waveforms are `(samples,)` or `(batch, samples)`, log-mel spectrograms `(batch, frames, mel_bins)`.
"""

from __future__ import annotations

import numpy as np
import soxr
import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank

from qamdt.audio import SAMPLING_RATE


PEAK = 0.5
SILENT_PEAK = 10 ** (-70 / 20)  # -70 dB of full scale


def resample(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Brings one waveform `(samples,)` from `sampling_rate` Hz to 16 kHz."""
    if sampling_rate == SAMPLING_RATE:
        return waveform.float()
    samples = soxr.resample(waveform.float().numpy(), sampling_rate, SAMPLING_RATE)
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def level(waveform: torch.Tensor) -> torch.Tensor:
    """Takes out the mean of samples `(samples,)`, which nobody hears, and scales them to a peak of one half: how loud a
    recording was mastered is no quality.

    What peaks below -70 dB of full scale is silence, and stays it.
    """
    waveform = waveform - waveform.mean()
    peak = waveform.abs().max()
    return waveform * (PEAK / peak) if peak >= SILENT_PEAK else waveform


class LogMel(nn.Module):
    """Log-mel spectrogram whose frames do not depend on zeros that follow the clip.

    Magnitudes of a Hann-windowed STFT, zero-padded by half a window at both ends, through Slaney mel filters; natural
    logarithm, floored at `log(1e-5)`.

    Args:
        num_mel_bins: Number of mel bands between 0 and 8 kHz.
        n_fft: Window and FFT length in samples.
        hop_length: Samples per frame.
    """

    def __init__(self, num_mel_bins: int = 64, n_fft: int = 1024, hop_length: int = 160):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        filters = mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=num_mel_bins,
            min_frequency=0.0,
            max_frequency=SAMPLING_RATE / 2,
            sampling_rate=SAMPLING_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)  # (bins, mel_bins)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Maps waveforms `(batch, samples)` to log-mel `(batch, samples // hop_length, mel_bins)` in float32."""
        if waveforms.ndim != 2 or waveforms.shape[1] < self.hop_length:
            raise ValueError(
                f"`waveforms` must have shape (batch, samples) with at least {self.hop_length} samples, "
                f"got {tuple(waveforms.shape)}."
            )
        padding = (self.n_fft - self.hop_length) // 2
        padded = nn.functional.pad(waveforms.float(), (padding, padding))
        spectrum = torch.stft(
            padded, self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True
        )
        mel_spectrogram = spectrum.abs().transpose(1, 2) @ self.filters
        return mel_spectrogram.clamp(min=1e-5).log()
