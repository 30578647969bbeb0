"""Many productions of one piece: equaliser, compression and a little room, none of which is a loss of quality.

A scorer that has only ever heard one synthesizer takes every other sound for damage. Here a clean clip becomes a
different clean clip, as another studio might have made it, before anything is degraded.
"""

import numpy as np
from scipy import signal


PEAK = 0.5


def produce(waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Gives a clean clip another sound.

    Args:
        waveform: Mono samples `(samples,)`.
        sampling_rate: Rate in Hz.
        generator: Source of everything random.

    Returns:
        Samples of the same length, with a peak of one half.
    """
    produced = np.asarray(waveform, dtype=np.float64)
    for _ in range(int(generator.integers(1, 4))):
        produced = _equalize(produced, sampling_rate, generator)
    if generator.random() < 0.5:
        produced = _compress(produced, sampling_rate, generator)
    if generator.random() < 0.3:
        produced = _add_early_reflections(produced, sampling_rate, generator)
    peak = float(np.abs(produced).max()) + 1e-9
    return (produced / peak * PEAK).astype(np.float32)


def _equalize(waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Lifts or lowers a broad band by up to 6 dB."""
    # The band is 1 / 0.7 times as wide as its centre is high, and must end below half the sampling rate.
    center_hz = float(np.exp(generator.uniform(np.log(120.0), np.log(0.3 * sampling_rate))))
    gain = 10 ** (generator.uniform(-6.0, 6.0) / 20) - 1.0
    numerator, denominator = signal.iirpeak(center_hz, 0.7, fs=sampling_rate)
    return waveform + gain * signal.lfilter(numerator, denominator, waveform)


def _compress(waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Evens out the loudness: the envelope, smoothed over about 50 ms, raised to a power below one."""
    cutoff = generator.uniform(3.0, 12.0)
    numerator, denominator = signal.butter(1, cutoff, fs=sampling_rate)
    envelope = np.sqrt(signal.filtfilt(numerator, denominator, waveform**2).clip(min=0.0))
    floor = 0.02 * float(envelope.max()) + 1e-9
    return waveform * np.maximum(envelope, floor) ** -generator.uniform(0.1, 0.5)


def _add_early_reflections(waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Adds a handful of echoes within 60 ms, each at least 9 dB below the direct sound."""
    produced = waveform.copy()
    for _ in range(int(generator.integers(3, 8))):
        delay = int(generator.uniform(0.005, 0.06) * sampling_rate)
        produced[delay:] += generator.choice((-1.0, 1.0)) * generator.uniform(0.05, 0.35) * waveform[:-delay]
    return produced
