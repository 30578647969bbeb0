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


def loudness_error(predicted: torch.Tensor, target: torch.Tensor, bins_per_band: torch.Tensor) -> torch.Tensor:
    """How far apart the loudness of log-mel spectrograms is, frame by frame and over the whole crop.

    Args:
        predicted: Log-mel of shape `(batch, 1, frames, mel_bins)`.
        target: Log-mel of the same shape.
        bins_per_band: Number of Fourier bins in each mel band `(mel_bins,)`; a wide band of the same mean magnitude
            carries more energy.

    Returns:
        A scalar tensor: mean absolute difference of the natural logarithm of the amplitude, over frames plus over crops.
    """
    frame_error = _frame_loudness(predicted, bins_per_band) - _frame_loudness(target, bins_per_band)
    crop_error = _crop_loudness(predicted, bins_per_band) - _crop_loudness(target, bins_per_band)
    return frame_error.abs().mean() + crop_error.abs().mean()


def waveform_loudness_error(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How far apart the loudness of waveforms `(batch, samples)` is, in frames of 64 ms and over the whole crop.

    Returns:
        A scalar tensor: mean absolute difference of the natural logarithm of the root-mean-square amplitude, floored at
        1e-4, over frames plus over crops.
    """

    def log_amplitude(waveforms: torch.Tensor, frame_length: int) -> torch.Tensor:
        power = torch.nn.functional.avg_pool1d(waveforms.square()[:, None], frame_length, frame_length // 2)
        return power.clamp(min=1e-8).log() / 2

    errors = [
        (log_amplitude(predicted, frame_length) - log_amplitude(target, frame_length)).abs().mean()
        for frame_length in (1024, predicted.shape[1])
    ]
    return torch.stack(errors).sum()


def _frame_loudness(mel_spectrogram: torch.Tensor, bins_per_band: torch.Tensor) -> torch.Tensor:
    """Half the logarithm of each frame's energy, `(batch, 1, frames)`."""
    return (2 * mel_spectrogram + bins_per_band.log()).logsumexp(dim=-1) / 2


def _crop_loudness(mel_spectrogram: torch.Tensor, bins_per_band: torch.Tensor) -> torch.Tensor:
    """Half the logarithm of the energy of all frames, `(batch, 1)`."""
    return (2 * mel_spectrogram + bins_per_band.log()).logsumexp(dim=(-2, -1)) / 2


def fine_frequency_error(
    predicted: torch.Tensor,
    target: torch.Tensor,
    sampling_rate: int,
    *,
    max_frequency_hz: float = 2000.0,
    resolutions: tuple[int, ...] = (2048, 4096, 8192),
) -> torch.Tensor:
    """How far apart low notes are: magnitudes, and how fast the phase of each bin turns, which is its exact frequency.

    Magnitudes alone leave a low note anywhere within the width of its bin. The advance of the phase from one frame to
    the next says where, and needs no absolute phase, which a listener does not hear and a decoder cannot know.

    Args:
        predicted: Waveforms of shape `(batch, samples)`.
        target: Waveforms of the same shape.
        sampling_rate: Their rate in Hz.
        max_frequency_hz: Bins above it do not count.
        resolutions: Window lengths in samples.

    Returns:
        A scalar tensor: spectral convergence, log magnitude distance and one minus the cosine between the advances,
        weighted by magnitude, averaged over window lengths; next to 0 for equal sounds.
    """
    errors = []
    for n_fft in resolutions:
        num_bins = int(max_frequency_hz / sampling_rate * n_fft) + 1
        window = torch.hann_window(n_fft, device=predicted.device)
        predicted_bins, target_bins = (
            torch.stft(waveforms, n_fft, n_fft // 4, window=window, return_complex=True)[:, :num_bins]
            for waveforms in (predicted, target)
        )
        predicted_magnitude, target_magnitude = _magnitude(predicted_bins), _magnitude(target_bins)
        difference = (target_magnitude - predicted_magnitude).square().sum(dim=(1, 2)).sqrt()
        convergence = (difference / target_magnitude.square().sum(dim=(1, 2)).sqrt()).mean()
        log_distance = (predicted_magnitude.log() - target_magnitude.log()).abs().mean()
        predicted_turn = predicted_bins[..., 1:] * predicted_bins[..., :-1].conj()
        target_turn = target_bins[..., 1:] * target_bins[..., :-1].conj()
        cosine = (predicted_turn * target_turn.conj()).real / (_magnitude(predicted_turn) * _magnitude(target_turn))
        weights = target_magnitude[..., 1:]
        turning = ((1 - cosine) * weights).sum() / weights.sum()
        errors.append(convergence + log_distance + turning)
    return torch.stack(errors).mean()


def _magnitude(spectrum: torch.Tensor) -> torch.Tensor:
    """Magnitudes floored at 1e-4, with a gradient everywhere."""
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-8).sqrt()


def attack_error(
    predicted: torch.Tensor, target: torch.Tensor, resolutions: tuple[int, ...] = (256, 512)
) -> torch.Tensor:
    """How far apart the attacks are: what rises from one short frame to the next, in each bin and in all together.

    Distances of magnitudes count the steady part of every note, many frames long, and the few frames of its beginning
    hardly at all, so a decoder that is unsure when a note begins may let it fade in. Here nothing but beginnings counts.

    Args:
        predicted: Waveforms of shape `(batch, samples)`.
        target: Waveforms of the same shape.
        resolutions: Window lengths in samples.

    Returns:
        A scalar tensor: the absolute difference of the rises of compressed magnitudes as a share of the target's rises,
        over bins and frames plus over frames alone, averaged over window lengths; 0 for equal magnitudes.
    """
    errors = []
    for n_fft in resolutions:
        predicted_rises, target_rises = _rises(predicted, n_fft), _rises(target, n_fft)
        for dims in ((), (1,)):
            ours = predicted_rises.sum(dim=dims) if dims else predicted_rises
            theirs = target_rises.sum(dim=dims) if dims else target_rises
            difference = (ours - theirs).abs().flatten(1).sum(dim=1)
            errors.append((difference / theirs.flatten(1).sum(dim=1).clamp(min=1e-3)).mean())
    return 2 * torch.stack(errors).mean()


def _rises(waveforms: torch.Tensor, n_fft: int) -> torch.Tensor:
    """By how much compressed magnitudes grow over half a window, `(batch, frequency_bins, frames)`."""
    compressed = magnitude_spectrum(waveforms, n_fft) ** 0.3
    return (compressed[..., 2:] - compressed[..., :-2]).relu()
