"""Carries a change of sound from one pair of waveforms to a third: band by band and moment by moment, as a gain.

An autoencoder changes what goes through it, often more than damage did. Two waveforms that came out of it share its
traces, so what differs between them is wanted, and a recording that is made louder and softer where they differ keeps its
own notes, phases and detail. By itself it is only made softer: a model that is not sure where a note is makes it weaker
in one place and stronger in another, and measured against undamaged originals, what it takes away is nearer the truth
than what it adds (`benchmarks/restoration.py`).
"""

from __future__ import annotations

import torch

from qamdt.audio import mel_filter_bank


N_FFT = 1024
HOP_LENGTH = 256
NUM_BANDS = 40
SMOOTHED_FRAMES = 9  # the spectrum of noise varies from frame to frame, what it is like does not
MIN_GAIN_DB, MAX_GAIN_DB = -24.0, 0.0


def carry_change(
    recording: torch.Tensor, without: torch.Tensor, with_change: torch.Tensor, sampling_rate: int
) -> torch.Tensor:
    """Changes a recording as `with_change` differs from `without`.

    Args:
        recording: Waveforms `(batch, samples)`.
        without: What corresponds to them, unchanged, of the same shape.
        with_change: The same, changed.
        sampling_rate: Samples per second of all, in Hz.

    Returns:
        The changed recordings `(batch, samples)`.
    """
    window = torch.hann_window(N_FFT, device=recording.device)
    spectra = [
        torch.stft(waveform, N_FFT, HOP_LENGTH, window=window, return_complex=True, pad_mode="constant")
        for waveform in (recording, without, with_change)
    ]  # (B, bins, frames)
    filters = mel_filter_bank(sampling_rate, N_FFT, NUM_BANDS, 0.0, sampling_rate / 2).to(recording)
    filters = filters[filters.sum(dim=1) > 0]  # a band between two bins has none
    average = filters / filters.sum(dim=1, keepdim=True)  # (bands, bins)
    before, after = (_smooth(average @ spectrum.abs().square()) for spectrum in spectra[1:])
    floor = 1e-6 * before.amax(dim=(1, 2), keepdim=True) + 1e-12  # what is far below the loudest is not compared
    gain_db = (10 * torch.log10((after + floor) / (before + floor))).clamp(MIN_GAIN_DB, MAX_GAIN_DB)
    height = filters / filters.amax(dim=1, keepdim=True)
    height[0, 0] = height[-1, -1] = 1  # the first and the last bin lie on the edges of their bands
    share = (height / height.sum(dim=0)).T  # (bins, bands): how much of each band is at a bin
    changed = spectra[0] * 10 ** (share @ gain_db / 20)
    return torch.istft(changed, N_FFT, HOP_LENGTH, window=window, length=recording.shape[1])


def _smooth(bands: torch.Tensor) -> torch.Tensor:
    """Averages `(batch, bands, frames)` over neighbouring frames; fewer at the ends."""
    return torch.nn.functional.avg_pool1d(
        bands, SMOOTHED_FRAMES, stride=1, padding=SMOOTHED_FRAMES // 2, count_include_pad=False
    )
