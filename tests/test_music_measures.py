"""Measures of beats, bars and chords, tried on sounds whose answer is known."""

import numpy as np
import pytest

from pipelines.evaluation.music_measures import beat_contrast, chord_match, metre_contrast
from qamdt.music import Music


SAMPLING_RATE = 16_000
SECONDS = 10
RHYTHM = {"tempo_bpm": 120, "first_beat_in_s": 0.0}


def clicks(spacing_in_s: float, *, first_in_s: float = 0.0, accent_every: int = 1) -> np.ndarray:
    """Short bursts of noise; every so manieth is ten times as loud."""
    generator, waveform = np.random.default_rng(0), np.zeros(SECONDS * SAMPLING_RATE)
    burst = np.exp(-np.arange(800) / 150)
    for number, start in enumerate(np.arange(first_in_s, SECONDS - 0.1, spacing_in_s)):
        samples = slice(round(start * SAMPLING_RATE), round(start * SAMPLING_RATE) + 800)
        waveform[samples] += burst * generator.standard_normal(800) * (1.0 if number % accent_every == 0 else 0.1)
    return waveform + 1e-4 * generator.standard_normal(len(waveform))


def tones(pitches: list[int], num_samples: int) -> np.ndarray:
    times = np.arange(num_samples) / SAMPLING_RATE
    return sum(np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * times) for pitch in pitches) / len(pitches)


def test_onsets_on_the_beat_correlate_and_those_between_beats_do_the_reverse():
    music = Music(**RHYTHM)
    on_beat = beat_contrast(clicks(0.5), SAMPLING_RATE, music)
    between = beat_contrast(clicks(0.5, first_in_s=0.25), SAMPLING_RATE, music)
    other_tempo = beat_contrast(clicks(0.43), SAMPLING_RATE, music)
    assert on_beat > 0.2
    assert between < -0.2
    assert abs(other_tempo) < 0.1


def test_accents_every_third_beat_are_three_in_a_bar():
    waltz, march = clicks(0.5, accent_every=3), clicks(0.5, accent_every=4)
    assert metre_contrast(waltz, SAMPLING_RATE, Music(**RHYTHM, time_signature="3/4")) > 0.03
    assert metre_contrast(march, SAMPLING_RATE, Music(**RHYTHM, time_signature="4/4")) > 0.03
    assert metre_contrast(march, SAMPLING_RATE, Music(**RHYTHM, time_signature="3/4")) < -0.03


@pytest.mark.parametrize("shift", [0, 2, 7])
def test_chords_that_sound_so_many_semitones_higher_are_likest_there(shift):
    chords = ((0.0, "C"), (3.0, "Am"), (6.0, "F"))
    pitches = ([60, 64, 67], [57, 60, 64], [53, 57, 60])
    lengths = [3 * SAMPLING_RATE, 3 * SAMPLING_RATE, 4 * SAMPLING_RATE]
    waveform = np.concatenate(
        [tones([p + shift for p in chord], n) for chord, n in zip(pitches, lengths, strict=True)]
    )
    match = chord_match(waveform, SAMPLING_RATE, Music(chords=chords))
    assert match.argmax() == shift
    assert match[shift] > 0.9


def test_chords_too_short_to_hear_are_passed_over():
    assert np.isnan(chord_match(np.zeros(1000), SAMPLING_RATE, Music(chords=((0.0, "C"),)))).all()
