"""The measures behind the control benchmark, tried on sounds whose answer is known."""

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from pipelines.evaluation import signal_measures
from qamdt import tempo_and_key


SAMPLING_RATE = 16_000
SECONDS = 10


def plucked_notes(pitches: list[int], notes_per_second: float, decay: float = 6.0) -> np.ndarray:
    """Harmonic notes in turn, each dying away, for ten seconds."""
    spacing = round(SAMPLING_RATE / notes_per_second)
    waveform = np.zeros(SECONDS * SAMPLING_RATE)
    for index, start in enumerate(range(0, len(waveform), spacing)):
        times = np.arange(len(waveform) - start) / SAMPLING_RATE
        frequency = 440 * 2 ** ((pitches[index % len(pitches)] - 69) / 12)
        partials = sum(np.sin(2 * np.pi * frequency * k * times) / k for k in range(1, 9) if frequency * k < 8000)
        waveform[start:] += partials * np.exp(-decay * times)
    return waveform / np.abs(waveform).max()


MELODY = plucked_notes([60, 64, 67, 72, 65, 69, 72, 62, 67, 71, 74, 60], notes_per_second=4)


def test_low_pass_filter_lowers_rolloff_and_bandwidth():
    muffled = sosfilt(butter(8, 1500, fs=SAMPLING_RATE, output="sos"), MELODY)
    for measure in (signal_measures.rolloff_hz, signal_measures.bandwidth_hz):
        assert measure(muffled, SAMPLING_RATE) < measure(MELODY, SAMPLING_RATE) - 300


def test_noise_buries_bandwidth_and_raises_the_noise_floor():
    noisy = MELODY + 0.02 * np.random.default_rng(0).standard_normal(len(MELODY))
    assert signal_measures.bandwidth_hz(noisy, SAMPLING_RATE) < signal_measures.bandwidth_hz(MELODY, SAMPLING_RATE)
    rise = signal_measures.noise_floor_db(noisy, SAMPLING_RATE) - signal_measures.noise_floor_db(MELODY, SAMPLING_RATE)
    assert rise > 6


def test_low_pass_filter_does_not_pass_for_silence():
    muffled = sosfilt(butter(8, 1500, fs=SAMPLING_RATE, output="sos"), MELODY)
    clean_floor = signal_measures.noise_floor_db(MELODY, SAMPLING_RATE)
    assert signal_measures.noise_floor_db(muffled, SAMPLING_RATE) > clean_floor - 1


@pytest.mark.parametrize("bpm", [66, 80, 97, 120, 144, 168])
def test_tempo_of_even_notes_is_found_up_to_octaves(bpm):
    found = tempo_and_key.tempo_bpm(plucked_notes([48], notes_per_second=bpm / 60, decay=12), SAMPLING_RATE)
    assert min(abs(found / bpm / factor - 1) for factor in (0.5, 1, 2)) < 0.04


def test_held_tones_have_no_tempo_and_clicks_and_plucked_notes_do():
    times = np.arange(10 * SAMPLING_RATE) / SAMPLING_RATE

    def tones(*frequencies):
        return sum(0.1 * np.sin(2 * np.pi * frequency * times) for frequency in frequencies)

    steady = {
        "chord": tones(220, 277.18, 329.63),
        "chord with hiss": tones(220, 277.18) + np.random.default_rng(0).normal(0, 1e-3, len(times)),
        "organ": sum(tones(110 * number) / number for number in range(1, 9)),
        "slow pad": (0.5 + 0.5 * np.sin(0.2 * np.pi * times)) * tones(220, 277.18),
        "beating": tones(220, 222),
        "vibrato": 0.2 * np.sin(2 * np.pi * (440 * times + 0.8 * np.sin(10 * np.pi * times))),
        "silence": 0 * times,
    }
    for name, waveform in steady.items():
        assert tempo_and_key.tempo_and_clarity(waveform.astype(np.float32), SAMPLING_RATE)[1] == 0, name
    clicks = (0.05 * (np.arange(len(times)) % 8000 < 80)).astype(np.float32)
    for waveform in (clicks, plucked_notes([48], notes_per_second=2, decay=2)):
        assert tempo_and_key.tempo_and_clarity(waveform, SAMPLING_RATE)[1] > 0.5


@pytest.mark.parametrize("semitones", [0, 5, 10])
def test_key_of_a_cadence_is_found(semitones):
    major = [pitch + semitones for pitch in (60, 64, 67, 65, 69, 72, 67, 71, 74, 60, 64, 67)]
    tonic = tempo_and_key.PITCH_CLASSES[semitones]
    assert tempo_and_key.key_name(plucked_notes(major, notes_per_second=3), SAMPLING_RATE) == f"{tonic} major"


def test_relative_keys_are_each_others():
    assert tempo_and_key.relative_key("C major") == "A minor"
    assert tempo_and_key.relative_key("Bb major") == "G minor"
    for tonic in tempo_and_key.PITCH_CLASSES:
        assert tempo_and_key.relative_key(tempo_and_key.relative_key(f"{tonic} minor")) == f"{tonic} minor"


def test_timbre_tells_sounds_apart_and_ignores_loudness():
    soft = sosfilt(butter(2, 600, fs=SAMPLING_RATE, output="sos"), MELODY)
    features = signal_measures.timbre(MELODY, SAMPLING_RATE)
    np.testing.assert_allclose(signal_measures.timbre(0.1 * MELODY, SAMPLING_RATE), features, atol=1e-3)
    assert np.abs(signal_measures.timbre(soft, SAMPLING_RATE) - features).mean() > 1


def test_silence_is_measured_without_a_warning():
    silence = np.zeros(SECONDS * SAMPLING_RATE)
    with np.errstate(all="raise"):
        assert np.isfinite(signal_measures.noise_floor_db(silence, SAMPLING_RATE))
        assert signal_measures.bandwidth_hz(silence, SAMPLING_RATE) == 0
        assert np.isfinite(signal_measures.timbre(silence, SAMPLING_RATE)).all()
