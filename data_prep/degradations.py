"""Ways of making a clip sound worse: named kinds, each with a severity from 0 (inaudible) to 1 (ruined).

All functions map mono float samples `(samples,)` to samples of the same length, without delay.
"""

import io
from dataclasses import dataclass

import numpy as np
import soundfile
from scipy import signal


KINDS = ("codec", "band_limit", "noise", "hum", "clipping", "reverb", "dropouts", "bit_crush", "microphone")
# Noise, band limits and poor microphones are what bad recordings mostly suffer from.
KIND_CHANCES = (0.12, 0.18, 0.2, 0.05, 0.1, 0.08, 0.06, 0.06, 0.15)
SHAPES = ("constant", "second_half", "first_half", "middle", "rising")
SHAPE_CHANCES = (0.6, 0.12, 0.1, 0.08, 0.1)
CROSSFADE_IN_S = 0.05


@dataclass(frozen=True)
class Degradation:
    """One way of damaging a clip.

    Args:
        kind: One of `KINDS`.
        severity: From 0 (inaudible) to 1 (ruined).
        shape: One of `SHAPES`: where in the clip the damage is.
        seed: Seed of the noise, dropouts and room.
    """

    kind: str
    severity: float
    shape: str = "constant"
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {KINDS}, got {self.kind!r}.")
        if self.shape not in SHAPES:
            raise ValueError(f"`shape` must be one of {SHAPES}, got {self.shape!r}.")
        if not 0.0 <= self.severity <= 1.0:
            raise ValueError(f"`severity` must lie between 0 and 1, got {self.severity}.")


def draw_degradation(generator: np.random.Generator) -> Degradation:
    """Draws a degradation: all severities occur, most are clearly audible."""
    return Degradation(
        kind=str(generator.choice(KINDS, p=KIND_CHANCES)),
        severity=round(float(generator.beta(1.6, 1.3)), 3),
        shape=str(generator.choice(SHAPES, p=SHAPE_CHANCES)),
        seed=int(generator.integers(2**31)),
    )


def degrade(waveform: np.ndarray, sampling_rate: int, degradation: Degradation) -> np.ndarray:
    """Damages a clip.

    Args:
        waveform: Mono samples within ±1.
        sampling_rate: Rate in Hz.
        degradation: What to do to it.

    Returns:
        Samples of the same length, within ±1.
    """
    generator = np.random.default_rng(degradation.seed)
    damaged = _APPLY[degradation.kind](waveform.astype(np.float64), sampling_rate, degradation.severity, generator)
    weights = _weights(len(waveform), sampling_rate, degradation.shape, generator)
    mixed = waveform + weights * (damaged - waveform)
    return np.clip(mixed, -1.0, 1.0).astype(np.float32)


def _weights(num_samples: int, sampling_rate: int, shape: str, generator: np.random.Generator) -> np.ndarray:
    """How much of the damaged signal is heard at each sample."""
    position = np.linspace(0.0, 1.0, num_samples)
    slope = num_samples / (CROSSFADE_IN_S * sampling_rate)
    edge = generator.uniform(0.4, 0.6)
    after = np.clip((position - edge) * slope, 0.0, 1.0)
    if shape == "second_half":
        return after
    if shape == "first_half":
        return 1.0 - after
    if shape == "middle":
        return np.clip((position - 0.3) * slope, 0.0, 1.0) * np.clip((0.7 - position) * slope, 0.0, 1.0)
    if shape == "rising":
        return position
    return np.ones(num_samples)


def _interpolate(severity: float, mild: float, severe: float) -> float:
    """Goes geometrically from the mild to the severe end of a setting."""
    return float(mild * (severe / mild) ** severity)


def _level(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(waveform**2))) + 1e-9


def add_codec(waveform: np.ndarray, sampling_rate: int, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Encodes and decodes with a lossy codec: Opus, MP3 or Vorbis at falling bit rates."""
    formats = (("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"))
    container, codec = formats[int(generator.integers(len(formats)))]
    buffer = io.BytesIO()
    level = 0.99 * severity**0.5
    soundfile.write(buffer, waveform, sampling_rate, format=container, subtype=codec, compression_level=level)
    buffer.seek(0)
    decoded, _ = soundfile.read(buffer, dtype="float64")
    decoded = np.pad(decoded, (0, max(0, len(waveform) - len(decoded))))[: len(waveform)]
    # Where rates get low, codecs give up the high frequencies.
    return _low_pass(decoded, sampling_rate, _interpolate(severity, 7900.0, 1500.0))


def _low_pass(waveform: np.ndarray, sampling_rate: int, cutoff_hz: float) -> np.ndarray:
    sections = signal.butter(8, min(cutoff_hz, 0.48 * sampling_rate), fs=sampling_rate, output="sos")
    return signal.sosfiltfilt(sections, waveform)


def limit_band(
    waveform: np.ndarray, sampling_rate: int, severity: float, generator: np.random.Generator
) -> np.ndarray:
    """Removes the high frequencies, from 7.5 kHz down to 0.5 kHz."""
    return _low_pass(waveform, sampling_rate, _interpolate(severity, 7500.0, 500.0))


def add_noise(waveform: np.ndarray, sampling_rate: int, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Adds hiss between white and pink, from 50 dB below the music to its own loudness and beyond."""
    return waveform + _noise(len(waveform), generator) * _level(waveform) * 10 ** (-(50 - 55 * severity) / 20)


def _noise(num_samples: int, generator: np.random.Generator) -> np.ndarray:
    """Noise of unit level whose spectrum falls by a random slope between white and pink."""
    spectrum = np.fft.rfft(generator.standard_normal(num_samples))
    slope = generator.uniform(0.0, 0.5)
    spectrum *= np.maximum(np.arange(len(spectrum)), num_samples / 400) ** -slope
    noise = np.fft.irfft(spectrum, num_samples)
    return noise / _level(noise)


def add_hum(waveform: np.ndarray, sampling_rate: int, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Adds mains hum with its harmonics, from 45 dB below the music to 8 dB above it."""
    mains_hz = float(generator.choice((50.0, 60.0)))
    time = np.arange(len(waveform)) / sampling_rate
    hum = np.zeros(len(waveform))
    for harmonic in range(1, 24):
        hum += np.sin(2 * np.pi * mains_hz * harmonic * time + generator.uniform(0, 2 * np.pi)) / harmonic**0.8
    return waveform + hum / _level(hum) * _level(waveform) * 10 ** (-(45 - 53 * severity) / 20)


def clip_peaks(
    waveform: np.ndarray, sampling_rate: int, severity: float, generator: np.random.Generator
) -> np.ndarray:
    """Overdrives by up to 36 dB and cuts the peaks off, at the same loudness."""
    peak = float(np.abs(waveform).max()) + 1e-9
    driven = np.clip(waveform / peak * 10 ** (36 * severity / 20), -1.0, 1.0)
    return driven * _level(waveform) / _level(driven)


def add_reverb(
    waveform: np.ndarray, sampling_rate: int, severity: float, generator: np.random.Generator
) -> np.ndarray:
    """Puts the music far away in a room that grows: decaying noise as impulse response, mixed with the direct sound."""
    decay_in_s = _interpolate(severity, 0.3, 3.0)
    length = int(1.2 * decay_in_s * sampling_rate)
    time = np.arange(length) / sampling_rate
    response = generator.standard_normal(length) * np.exp(-6.9 * time / decay_in_s)
    wet = signal.fftconvolve(_low_pass(waveform, sampling_rate, 6000.0), response)[: len(waveform)]
    wet *= _level(waveform) / _level(wet)
    share = 0.02 + 0.93 * severity
    return waveform * (1 - share) + wet * share


def drop_out(waveform: np.ndarray, sampling_rate: int, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Silences short stretches, more and longer ones with severity."""
    gaps_per_s = _interpolate(severity, 1.0, 7.0)
    gap_in_s = _interpolate(severity, 0.01, 0.1)
    gate = np.ones(len(waveform))
    for slot in range(int(len(waveform) / sampling_rate * gaps_per_s)):
        start = int((slot + generator.uniform(0.1, 0.8)) / gaps_per_s * sampling_rate)
        gate[start : start + int(gap_in_s * sampling_rate * generator.uniform(0.7, 1.3))] = 0.0
    ramp = np.hanning(33)
    return waveform * signal.fftconvolve(gate, ramp / ramp.sum(), mode="same").clip(0.0, 1.0)


def crush_bits(
    waveform: np.ndarray, sampling_rate: int, severity: float, generator: np.random.Generator
) -> np.ndarray:
    """Rounds to few amplitude steps, from 11 bits to 2."""
    steps = 2 ** (10.0 - 9.0 * severity)
    peak = float(np.abs(waveform).max()) + 1e-9
    return np.round(waveform / peak * steps) / steps * peak


def use_cheap_microphone(
    waveform: np.ndarray, sampling_rate: int, severity: float, generator: np.random.Generator
) -> np.ndarray:
    """A poor recording chain: narrow resonant band, small room, overdrive and hiss together."""
    low_hz, high_hz = _interpolate(severity, 20.0, 500.0), _interpolate(severity, 7900.0, 2200.0)
    sections = signal.butter(2, (low_hz, high_hz), btype="band", fs=sampling_rate, output="sos")
    recorded = signal.sosfilt(sections, waveform)
    numerator, denominator = signal.iirpeak(generator.uniform(900, 2500), 2.0, fs=sampling_rate)
    recorded = recorded + severity * signal.lfilter(numerator, denominator, recorded)
    recorded = add_reverb(recorded, sampling_rate, 0.35 * severity, generator)
    drive = _interpolate(severity, 0.1, 6.0)
    peak = float(np.abs(recorded).max()) + 1e-9
    recorded = np.tanh(drive * recorded / peak) / np.tanh(drive)
    recorded *= _level(waveform) / _level(recorded)
    return add_noise(recorded, sampling_rate, 0.8 * severity, generator)


_APPLY = {
    "codec": add_codec,
    "band_limit": limit_band,
    "noise": add_noise,
    "hum": add_hum,
    "clipping": clip_peaks,
    "reverb": add_reverb,
    "dropouts": drop_out,
    "bit_crush": crush_bits,
    "microphone": use_cheap_microphone,
}
