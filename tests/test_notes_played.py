"""Measures of transcribed notes, in closed form; the transcriber itself is not part of the tests."""

import numpy as np
import pytest

from benchmarks.notes_played import Notes, onset_f1


def notes(*events: tuple[float, float, int]) -> Notes:
    spans = np.array([event[:2] for event in events], dtype=float).reshape(-1, 2)
    return Notes(spans, np.array([event[2] for event in events], dtype=int))


def test_notes_are_described_by_number_length_and_how_many_sound_at_once():
    per_second, length, at_once = notes((0.0, 2.0, 60), (1.0, 3.0, 64), (6.0, 7.0, 67)).describe(10.0)
    assert per_second == pytest.approx(0.3)
    assert length == pytest.approx(5 / 3)
    assert at_once == pytest.approx(5 / 4, abs=0.02)  # five seconds of notes within four of sound
    assert notes().describe(10.0) == [0.0, 0.0, 0.0]


def test_an_onset_counts_at_its_pitch_and_time_alone():
    pytest.importorskip("mir_eval")
    reference = notes((0.0, 1.0, 60), (1.0, 2.0, 64))
    assert onset_f1(reference, reference) == 1
    assert onset_f1(notes((0.04, 0.5, 60), (1.0, 2.0, 65)), reference) == pytest.approx(0.5)
    assert onset_f1(notes((0.1, 1.0, 60)), reference) == 0
    assert onset_f1(notes(), reference) == 0
    assert np.isnan(onset_f1(reference, notes()))
