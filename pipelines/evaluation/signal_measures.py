"""Plain signal measures of a clip, independent of every model in this project: bandwidth, noise and timbre.

All take a mono waveform `(samples,)` as a numpy array, with its sampling rate, and need only numpy and scipy. Tempo and
key are measured by `qamdt.tempo_and_key`.
"""

import numpy as np

from qamdt.tempo_and_key import SILENCE, band_power, power_spectrogram


def rolloff_hz(waveform: np.ndarray, sampling_rate: int, fraction: float = 0.99) -> float:
    """Frequency below which `fraction` of the clip's energy lies."""
    frequencies, power = power_spectrogram(waveform, sampling_rate, 1024, 512)
    cumulative = np.cumsum(power.mean(axis=1))
    return float(frequencies[np.searchsorted(cumulative, fraction * cumulative[-1])])


def bandwidth_hz(waveform: np.ndarray, sampling_rate: int, band_hz: float = 250.0) -> float:
    """How much of the spectrum carries music: the total width of the bands whose level moves.

    A band moves when its loud moments lie within 60 dB of the loudest band and 8 dB above its own quiet ones. Both a
    low-pass filter and a steady noise that buries the high partials take bands away.
    """
    frequencies, power = power_spectrogram(waveform, sampling_rate, 1024, 256)
    power_of_bands = band_power(frequencies, power, np.arange(0, sampling_rate / 2 + 1, band_hz))
    quiet, loud = np.percentile(power_of_bands, [10, 95], axis=1)
    return float(band_hz * np.sum((loud > 1e-6 * loud.max()) & (loud > 6 * quiet)))


def noise_floor_db(waveform: np.ndarray, sampling_rate: int) -> float:
    """Level that remains between the notes, relative to the loudest bin, in dB.

    In each frequency bin the tenth percentile over time is what is there when no note sounds. The floor is its median
    over the bins that the music reaches, so that a low-pass filter does not pass for silence.
    """
    _, power = power_spectrogram(waveform, sampling_rate, 1024, 256)
    quiet, loud = np.percentile(power, [10, 95], axis=1)
    floor = np.median(quiet[loud >= 1e-5 * loud.max()])
    return float(10 * np.log10((floor + SILENCE) / (power.max() + SILENCE)))


def timbre(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Average level of each third of an octave, and how much it moves over time, in dB: `(2 * bands,)`.

    The overall loudness is taken out. The movement tells a plucked string from a bowed one.
    """
    frequencies, power = power_spectrogram(waveform, sampling_rate, 2048, 512)
    power_of_bands = band_power(frequencies, power, np.geomspace(80, sampling_rate / 2, 21))
    level_db = 10 * np.log10(power_of_bands + 1e-6 * power_of_bands.max() + SILENCE)
    mean_db = level_db.mean(axis=1)
    return np.concatenate([mean_db - mean_db.mean(), level_db.std(axis=1)])
