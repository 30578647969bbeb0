"""Sound files in and out, and the log-mel spectrogram that the autoencoder sees.

Shapes: waveforms are `(samples,)` or `(batch, samples)`, mel spectrograms `(batch, 1, frames, mel_bins)`,
time before frequency, as in AudioLDM.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import nn

from qamdt.audio_formats import find_audio_format
from qamdt.files import write_atomically
from qamdt.sound_files import read_samples


SAMPLING_RATE = 16_000


def read_audio(
    path: str | os.PathLike,
    sampling_rate: int = SAMPLING_RATE,
    *,
    start_in_s: float = 0.0,
    duration_in_s: float | None = None,
) -> torch.Tensor:
    """Reads a wav, flac, ogg, mp3 or opus file as mono float32 samples of shape `(samples,)`.

    Args:
        path: The sound file; channels are averaged.
        sampling_rate: Rate in Hz to resample to.
        start_in_s: Where to begin, in seconds.
        duration_in_s: How much to read, in seconds; the rest of the file when `None`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be decoded, it ends before `start_in_s`, holds no sound, or samples that are NaN or
            infinite.
    """
    samples, source_rate = read_samples(path, start_in_s=start_in_s, duration_in_s=duration_in_s, is_mixed=True)
    if start_in_s < 0 or (start_in_s > 0 and not len(samples)):
        raise ValueError(f"`start_in_s` must lie inside {str(path)!r}, got {start_in_s}.")
    if not len(samples):
        raise ValueError(f"{str(path)!r} holds no sound.")
    if not np.isfinite(samples).all():
        raise ValueError(f"{str(path)!r} holds samples that are not finite.")
    samples = samples[:, 0]
    if source_rate != sampling_rate:
        samples = soxr.resample(samples, source_rate, sampling_rate)
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def write_audio(path: str | os.PathLike, waveform: torch.Tensor | np.ndarray, sampling_rate: int) -> None:
    """Writes mono samples `(samples,)` to a wav, flac, ogg, opus or mp3 file, whole or not at all.

    The file is encoded in memory, because libsndfile passes over a full disk in silence, and goes to a temporary file
    that then takes the place of `path`: a full disk or a killed process leaves no half-written file behind. Samples
    beyond ±1 are limited to ±1.

    Raises:
        ValueError: `path` has an unknown extension, such files have no such rate, or `waveform` is not one finite mono
            signal.
        OSError: The disk is full or not writable; nothing is left at `path`.
    """
    path = Path(path)
    audio_format = find_audio_format(path, sampling_rate)
    samples = np.asarray(waveform.detach().cpu() if isinstance(waveform, torch.Tensor) else waveform, dtype=np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f"`waveform` must be finite mono samples of shape (samples,), got shape {samples.shape}.")
    encoded = io.BytesIO()
    soundfile.write(
        encoded, samples.clip(-1, 1), sampling_rate, format=audio_format.container, subtype=audio_format.codec
    )
    try:
        write_atomically(path, lambda file: file.write_bytes(encoded.getbuffer()))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The folder of `path` must exist, got {str(path)!r}.") from error
    except OSError as error:
        raise OSError(f"Could not write {str(path)!r}: {error}. Free disk space or choose another `path`.") from error


def normalize_waveform(waveform: torch.Tensor) -> torch.Tensor:
    """Removes the mean and scales the peak to 0.5, the published preprocessing; silence stays silent."""
    waveform = waveform - waveform.mean(dim=-1, keepdim=True)
    peak = waveform.abs().amax(dim=-1, keepdim=True)
    return waveform / peak.clamp(min=1e-8) * 0.5


def mel_filter_bank(
    sampling_rate: int, n_fft: int, num_mel_bins: int, min_frequency_hz: float, max_frequency_hz: float
) -> torch.Tensor:
    """Triangular filters on Slaney's mel scale with unit area, of shape `(mel_bins, n_fft // 2 + 1)`."""
    edges = _mel_to_hz(
        np.linspace(_hz_to_mel(np.array(min_frequency_hz)), _hz_to_mel(np.array(max_frequency_hz)), num_mel_bins + 2)
    )
    frequencies = np.linspace(0, sampling_rate / 2, n_fft // 2 + 1)
    rising = (frequencies[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies[None]) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return torch.from_numpy(triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def _hz_to_mel(frequency_hz: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear to 1 kHz (15 mel), then 27 steps for each factor of 6.4."""
    above = 15 + 27 * np.log(np.maximum(frequency_hz, 1000.0) / 1000.0) / np.log(6.4)
    return np.where(frequency_hz < 1000.0, frequency_hz * 3 / 200, above)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = 1000.0 * np.exp(np.log(6.4) * (np.maximum(mel, 15.0) - 15) / 27)
    return np.where(mel < 15.0, mel * 200 / 3, above)


class LogMel(nn.Module):
    """Computes the log-mel spectrogram of AudioLDM and QA-MDT.

    A magnitude STFT (Hann window, reflection padding so that there is one frame per hop), Slaney mel filters,
    and the natural logarithm floored at `log(1e-5)`.

    Args:
        sampling_rate: Rate of the waveforms in Hz.
        n_fft: Window and FFT length in samples.
        hop_length: Samples per frame.
        num_mel_bins: Number of mel bands.
        min_frequency_hz: Lower edge of the first band.
        max_frequency_hz: Upper edge of the last band.
    """

    def __init__(
        self,
        sampling_rate: int = SAMPLING_RATE,
        n_fft: int = 1024,
        hop_length: int = 160,
        num_mel_bins: int = 64,
        min_frequency_hz: float = 0.0,
        max_frequency_hz: float = 8000.0,
    ):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        filters = mel_filter_bank(sampling_rate, n_fft, num_mel_bins, min_frequency_hz, max_frequency_hz)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("bins_per_band", (filters > 0).sum(dim=1).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Maps waveforms `(batch, samples)` to log-mel `(batch, 1, samples // hop_length, mel_bins)`."""
        padding = (self.n_fft - self.hop_length) // 2
        if waveforms.ndim != 2 or waveforms.shape[1] <= padding:
            raise ValueError(
                f"`waveforms` must have shape (batch, samples) with more than {padding} samples, "
                f"got {tuple(waveforms.shape)}."
            )
        padded = nn.functional.pad(waveforms.unsqueeze(1), (padding, padding), mode="reflect").squeeze(1)
        spectrum = torch.stft(
            padded, self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True
        )
        mel_spectrogram = self.filters @ spectrum.abs()  # (B, mel_bins, frames)
        return mel_spectrogram.clamp(min=1e-5).log().transpose(1, 2).unsqueeze(1)
