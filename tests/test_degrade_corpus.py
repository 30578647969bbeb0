from dataclasses import replace

import numpy as np
import pytest

from data_prep.degrade_corpus import DegradeSettings, degrade_corpus, main
from data_prep.productions import produce
from data_prep.structure_damage import STRUCTURE_KINDS, STRUCTURE_SCORES
from qamdt.audio import read_audio, write_audio
from qamdt.keyed_rows import KeyedRows
from qamdt.manifest import Record, read_manifest, write_manifest


@pytest.fixture
def manifest(tmp_path):
    """Two clean clips, one degraded one, one of the test split."""
    generator = np.random.default_rng(0)
    fading = np.exp(-3 * np.arange(16_000) / 16_000)
    records = []
    for name, tags in (
        ("a", {"split": "train"}),
        ("b", {"split": "train", "degradation": None}),
        ("worn", {"split": "train", "degradation": {"kind": "noise"}}),
        ("t", {"split": "test"}),
    ):
        waveform = 0.2 * generator.standard_normal(16_000) * fading
        write_audio(tmp_path / f"{name}.flac", waveform, 16_000)
        records.append(Record(id=name, path=f"{name}.flac", duration_in_s=1.0, captions=("a hit",), tags=tags))
    write_manifest(tmp_path / "manifest.jsonl", records)
    return tmp_path / "manifest.jsonl"


def test_versions_of_clean_clips_with_their_scores(manifest, tmp_path):
    settings = DegradeSettings(versions=6, kinds=("noise", "band_limit"), clean_share=0.3, produce_share=0.5)
    path, counts, failures = degrade_corpus(manifest, tmp_path / "out", settings=settings, split="train")
    records = list(read_manifest(path))
    assert not failures
    assert counts == {"kept": 0, "made": 12}
    assert [record.id for record in records] == [f"{name}-v{i}" for name in "ab" for i in range(6)]
    for record in records:
        degradations = record.tags["degradation"] or []
        assert {degradation["kind"] for degradation in degradations} <= {"noise", "band_limit"}
        assert (record.quality_score == 5.0) == (not degradations) or degradations[0]["severity"] < 0.2
        assert len(read_audio(tmp_path / "out" / record.path)) == 16_000
        assert record.captions == ("a hit",)
    assert len({record.quality_score for record in records}) > 3


def write_times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("audio/*")}


def redone(folder, before):
    return {name for name, time in write_times(folder).items() if before.get(name) != time}


def test_a_second_run_does_what_is_missing(manifest, tmp_path):
    folder = tmp_path / "out"
    path, _, _ = degrade_corpus(manifest, folder)
    content, times = path.read_bytes(), write_times(folder)
    lines = (folder / "progress.jsonl").read_text().splitlines(keepends=True)
    (folder / "progress.jsonl").write_text("".join(lines[:-1]) + lines[-1][:30])  # killed while writing
    assert degrade_corpus(manifest, folder)[1] == {"kept": 5, "made": 1}
    assert path.read_bytes() == content
    assert redone(folder, times) == {"t-v1.flac"}


def test_what_has_changed_is_made_again_and_the_rest_kept(manifest, tmp_path):
    folder = tmp_path / "out"
    degrade_corpus(manifest, folder)
    old = (tmp_path / "a.flac").read_bytes()
    write_audio(tmp_path / "a.flac", 0.1 * np.random.default_rng(7).standard_normal(16_000), 16_000)
    records = [replace(record, captions=("a flop",)) for record in read_manifest(manifest)]
    write_manifest(manifest, records)
    times = write_times(folder)
    path, counts, _ = degrade_corpus(manifest, folder)
    assert (counts, redone(folder, times)) == ({"kept": 4, "made": 2}, {"a-v0.flac", "a-v1.flac"})
    assert {record.captions for record in read_manifest(path)} == {("a flop",)}
    fresh, _, _ = degrade_corpus(manifest, tmp_path / "fresh")
    assert path.read_bytes() == fresh.read_bytes()
    assert (folder / "audio/a-v0.flac").read_bytes() == (tmp_path / "fresh/audio/a-v0.flac").read_bytes()

    # One version more needs nothing else; another seed needs everything, and so does the way back.
    assert degrade_corpus(manifest, folder, settings=DegradeSettings(versions=3))[1] == {"kept": 6, "made": 3}
    assert degrade_corpus(manifest, folder, settings=DegradeSettings(seed=1))[1] == {"kept": 0, "made": 6}
    assert degrade_corpus(manifest, folder)[1] == {"kept": 0, "made": 6}
    assert path.read_bytes() == fresh.read_bytes()
    assert (folder / "audio/a-v0.flac").read_bytes() == (tmp_path / "fresh/audio/a-v0.flac").read_bytes()

    # A clean clip that is as it was before, but for its time, is another one.
    (tmp_path / "a.flac").write_bytes(old)
    assert degrade_corpus(manifest, folder)[1] == {"kept": 4, "made": 2}


def test_a_folder_of_an_earlier_version_or_of_another_process_is_refused(manifest, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "progress.jsonl").write_text('{"id": "a", "records": []}\n')
    with pytest.raises(SystemExit, match=r"progress\.jsonl, line 1: .*a file of an older version must be moved away"):
        main([str(manifest), str(tmp_path / "out")])
    with KeyedRows(tmp_path / "busy", "progress"), pytest.raises(SystemExit, match="another process is writing"):
        main([str(manifest), str(tmp_path / "busy")])


def test_another_production_is_another_sound_of_the_same_length():
    generator = np.random.default_rng(3)
    waveform = 0.2 * generator.standard_normal(16_000) * np.linspace(1, 0.1, 16_000)
    produced = produce(waveform, 16_000, np.random.default_rng(0))
    assert produced.shape == waveform.shape
    assert np.abs(produced).max() == pytest.approx(0.5, abs=1e-4)
    assert not np.allclose(produced / produced.std(), waveform / waveform.std(), atol=0.1)
    np.testing.assert_array_equal(produced, produce(waveform, 16_000, np.random.default_rng(0)))
    for seed in range(40):  # every equaliser that can be drawn is stable
        assert np.isfinite(produce(waveform[:4_000], 16_000, np.random.default_rng(seed))).all()


def test_some_versions_lose_their_structure_and_have_the_score_of_that(manifest, tmp_path):
    settings = DegradeSettings(versions=4, structure_share=0.5)
    path, _, failures = degrade_corpus(manifest, tmp_path / "out", settings=settings)
    assert not failures
    kinds = {
        record.id: [damage["kind"] for damage in record.tags["degradation"] or []] for record in read_manifest(path)
    }
    broken = {name for name, found in kinds.items() if set(found) & set(STRUCTURE_KINDS)}
    assert 0 < len(broken) < len(kinds)
    for record in read_manifest(path):
        if record.id in broken:
            (kind,) = kinds[record.id]
            assert record.quality_score == STRUCTURE_SCORES[kind]
            assert set(record.quality_frames) == {record.quality_score}
        assert len(read_audio(path.parent / record.path)) == 16_000


def test_unreadable_clips_are_listed_and_the_others_done(manifest, tmp_path, capsys):
    (tmp_path / "a.flac").write_bytes(b"no audio")
    with manifest.open("a") as file:
        file.write('{"id": "x", "path": "../outside.flac", "duration_in_s": 1.0}\n')
    message = r"(?s)2 clips could not be degraded.*line 5: `path` must be relative.*a: `path` must be a readable"
    with pytest.raises(SystemExit, match=message):
        main([str(manifest), str(tmp_path / "out"), "--versions", "1"])
    assert [record.id for record in read_manifest(tmp_path / "out" / "manifest.jsonl")] == ["b-v0", "t-v0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--kinds", "sparkle"], "`kinds` must be some of"), (["--versions", "0"], "`versions` must be at least 1")],
)
def test_bad_settings_are_refused(manifest, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main([str(manifest), str(tmp_path / "out"), *arguments])
