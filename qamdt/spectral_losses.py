"""Distances between sounds in the frequency domain: training losses of the decoders, and their report card.

Shapes: waveforms `(batch, samples)`, spectra `(batch, frequency_bins, frames)`, log-mel `(batch, 1, frames, mel_bins)`.
"""

from __future__ import annotations

import torch


RESOLUTIONS = (256, 512, 1024, 2048)


def magnitude_spectrum(waveforms: torch.Tensor, n_fft: int) -> torch.Tensor:
    """Magnitudes of a Hann-windowed STFT with hop `n_fft // 4`, floored at 1e-4."""
    window = torch.hann_window(n_fft, device=waveforms.device)
    spectrum = torch.stft(waveforms, n_fft, n_fft // 4, window=window, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return power.clamp(min=1e-8).sqrt()


def multi_resolution_stft_distance(
    predicted: torch.Tensor, target: torch.Tensor, resolutions: tuple[int, ...] = RESOLUTIONS
) -> torch.Tensor:
    """Mean over window lengths of spectral convergence plus log-magnitude distance (Yamamoto et al., 1910.11480).

    Phase plays no part, so two sounds that a listener cannot tell apart may have distance near zero.

    Args:
        predicted: Waveforms of shape `(batch, samples)`.
        target: Waveforms of the same shape.
        resolutions: Window lengths in samples.

    Returns:
        A scalar tensor; 0 for equal magnitudes.
    """
    distances = []
    for n_fft in resolutions:
        predicted_magnitude = magnitude_spectrum(predicted, n_fft)
        target_magnitude = magnitude_spectrum(target, n_fft)
        error = (target_magnitude - predicted_magnitude).square().sum(dim=(1, 2)).sqrt()
        convergence = error / target_magnitude.square().sum(dim=(1, 2)).sqrt()
        log_distance = (predicted_magnitude.log() - target_magnitude.log()).abs().mean(dim=(1, 2))
        distances.append((convergence + log_distance).mean())
    return torch.stack(distances).mean()


def frame_loudness(mel_spectrogram: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of each frame's energy: log-mel `(batch, 1, frames, mel_bins)` to `(batch, 1, frames)`."""
    return (2 * mel_spectrogram).logsumexp(dim=-1) / 2
