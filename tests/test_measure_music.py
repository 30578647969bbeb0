"""Tempo, beat and key are measured where the manifest lacks them, and only there."""

import json

import numpy as np
import pytest
import soundfile

from data_prep.measure_music import main, measure_manifest
from qamdt.audio import SAMPLING_RATE
from qamdt.manifest import Record, read_manifest, write_manifest
from qamdt.tempo_and_key import beat_grid


A_MINOR_HZ = (220.0, 261.63, 329.63, 220.0, 293.66, 349.23, 329.63, 246.94)


def play(bpm: float, first_beat_in_s: float, duration_in_s: float = 10.0) -> np.ndarray:
    """Decaying tones on the beats, in A minor."""
    samples = np.zeros(round(duration_in_s * SAMPLING_RATE))
    for number, start_in_s in enumerate(np.arange(first_beat_in_s, duration_in_s - 0.5, 60 / bpm)):
        start, seconds = round(start_in_s * SAMPLING_RATE), np.arange(SAMPLING_RATE // 2) / SAMPLING_RATE
        frequency_hz = A_MINOR_HZ[number % len(A_MINOR_HZ)]
        tone = sum(np.sin(2 * np.pi * frequency_hz * k * seconds) / k for k in (1, 2, 3)) * np.exp(-6 * seconds)
        samples[start : start + len(tone)] += 0.2 * tone
    return samples


@pytest.fixture
def corpus(tmp_path):
    soundfile.write(tmp_path / "steady.wav", play(100, 0.31), SAMPLING_RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(5 * SAMPLING_RATE), SAMPLING_RATE)
    records = [
        Record(id="steady", path="steady.wav", duration_in_s=10.0, tags={"tempo_bpm": 100}),
        Record(id="told", path="steady.wav", duration_in_s=10.0, tempo_bpm=50.0, first_beat_in_s=1.0, key="C major"),
        Record(id="silent", path="silent.wav", duration_in_s=5.0),
    ]
    write_manifest(tmp_path / "manifest.jsonl", records)
    return tmp_path


def read(folder, name="measured.jsonl"):
    return {record.id: record for record in read_manifest(folder / name)}


@pytest.mark.parametrize(("bpm", "first_beat_in_s"), [(100, 0.31), (87.3, 0.05), (141, 0.4)])
def test_the_grid_lies_on_the_beats(bpm, first_beat_in_s):
    found_bpm, found_s = beat_grid(play(bpm, first_beat_in_s), SAMPLING_RATE, 1.01 * bpm)
    assert found_bpm == pytest.approx(bpm, rel=0.003)
    assert abs((found_s - first_beat_in_s + 30 / bpm) % (60 / bpm) - 30 / bpm) < 0.03


def test_what_is_lacking_is_filled_in_and_what_is_known_stays(corpus):
    manifest = corpus / "manifest.jsonl"
    assert main(["--manifest", str(manifest), "--out", str(corpus / "measured.jsonl")]) == 0
    measured, before = read(corpus), read(corpus, "manifest.jsonl")
    assert measured["steady"].tempo_bpm == pytest.approx(100, rel=0.003)
    assert measured["steady"].first_beat_in_s == pytest.approx(0.31, abs=0.03)
    assert measured["steady"].key == "A minor"
    assert measured["steady"].extra["music_measured"] == ["first_beat_in_s", "key", "tempo_bpm"]
    assert measured["told"] == before["told"]
    assert measured["silent"] == before["silent"]


def test_other_thresholds_measure_nothing_again_and_take_back_what_is_not_sure(corpus, capsys):
    measure_manifest(corpus / "manifest.jsonl", corpus / "measured.jsonl")
    rows = (corpus / "measured.measurements.jsonl").read_bytes()
    measure_manifest(corpus / "manifest.jsonl", corpus / "measured.jsonl", min_key_margin=1.9, min_tempo_clarity=0.99)
    assert (corpus / "measured.measurements.jsonl").read_bytes() == rows
    assert "3 clips were measured before, 0 are now" in capsys.readouterr().err
    assert read(corpus)["steady"] == read(corpus, "manifest.jsonl")["steady"]
    # The output as the next input: what was filled in does not count as known.
    measure_manifest(corpus / "manifest.jsonl", corpus / "measured.jsonl")
    measure_manifest(corpus / "measured.jsonl", corpus / "again.jsonl", min_key_margin=1.9)
    assert read(corpus, "again.jsonl")["steady"].key is None


def test_a_changed_sound_is_measured_again(corpus):
    measure_manifest(corpus / "manifest.jsonl", corpus / "measured.jsonl")
    soundfile.write(corpus / "steady.wav", play(100, 0.1), SAMPLING_RATE)
    measure_manifest(corpus / "manifest.jsonl", corpus / "measured.jsonl")
    assert read(corpus)["steady"].first_beat_in_s == pytest.approx(0.1, abs=0.03)


def test_bad_clips_and_lines_are_listed_and_the_rest_is_done(corpus, capsys):
    manifest = corpus / "manifest.jsonl"
    with manifest.open("a") as file:
        file.write(json.dumps({"id": "gone", "path": "gone.wav", "duration_in_s": 5.0}) + "\n{broken\n")
    assert main(["--manifest", str(manifest), "--out", str(corpus / "measured.jsonl")]) == 1
    error = capsys.readouterr().err
    for text in ("gone", "line 5", "2 clips or lines could not be measured"):
        assert text in error
    assert read(corpus).keys() == {"steady", "told", "silent", "gone"}
    assert read(corpus)["steady"].key == "A minor"


def test_an_output_in_the_manifests_place_or_in_another_folder_is_refused(corpus, capsys):
    manifest = str(corpus / "manifest.jsonl")
    assert main(["--manifest", manifest, "--out", manifest]) == 2
    assert "would be written over" in capsys.readouterr().err
    assert main(["--manifest", manifest, "--out", str(corpus / "sub" / "measured.jsonl")]) == 2
    assert "`out` must" in capsys.readouterr().err
    assert len(read(corpus, "manifest.jsonl")) == 3
