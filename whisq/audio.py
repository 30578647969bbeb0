"""Sound files as 16 kHz mono waveforms, and the log-mel spectrogram that the small audio tower sees.

Shapes: waveforms are `(samples,)` or `(batch, samples)`, log-mel spectrograms `(batch, frames, mel_bins)`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank


SAMPLING_RATE = 16_000
PEAK = 0.5
SILENT_PEAK = 10 ** (-70 / 20)  # -70 dB of full scale


def read_audio(
    path: str | os.PathLike, *, start_in_s: float = 0.0, duration_in_s: float | None = None
) -> torch.Tensor:
    """Reads a wav, flac, ogg, mp3 or opus file as mono float32 samples `(samples,)` at 16 kHz.

    Args:
        path: The sound file; channels are averaged.
        start_in_s: Where to begin, in seconds.
        duration_in_s: How much to read, in seconds; the rest of the file when `None`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be decoded, or it ends before `start_in_s`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an audio file, got {str(path)!r}, which does not exist.")
    try:
        with soundfile.SoundFile(path) as file:
            length_in_s = file.frames / file.samplerate
            if not 0 <= start_in_s < max(length_in_s, 1e-9):
                raise ValueError(
                    f"`start_in_s` must lie inside {str(path)!r} ({length_in_s:.2f} s long), got {start_in_s}."
                )
            file.seek(round(start_in_s * file.samplerate))
            count = -1 if duration_in_s is None else round(duration_in_s * file.samplerate)
            samples = file.read(count, dtype="float32", always_2d=True).mean(axis=1)
            source_rate = file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"`path` must be a readable wav, flac, ogg, mp3 or opus file, got {str(path)!r}: {error}. "
            "Convert it, for example with ffmpeg."
        ) from error
    return resample(torch.from_numpy(samples), source_rate)


def resample(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Brings one waveform `(samples,)` from `sampling_rate` Hz to 16 kHz."""
    if sampling_rate == SAMPLING_RATE:
        return waveform.float()
    samples = soxr.resample(waveform.float().numpy(), sampling_rate, SAMPLING_RATE)
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def level(waveform: torch.Tensor) -> torch.Tensor:
    """Scales samples `(samples,)` to a peak of one half: how loud a recording was mastered is no quality.

    What peaks below -70 dB of full scale is silence, and stays it.
    """
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
