import json

import numpy as np
import pytest

from data_prep.degrade_corpus import DegradeSettings, degrade_corpus, main
from data_prep.productions import produce
from qamdt.audio import read_audio, write_audio
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
    path, failures = degrade_corpus(manifest, tmp_path / "out", settings=settings, split="train")
    records = list(read_manifest(path))
    assert not failures
    assert [record.id for record in records] == [f"{name}-v{i}" for name in "ab" for i in range(6)]
    for record in records:
        degradations = record.tags["degradation"] or []
        assert {degradation["kind"] for degradation in degradations} <= {"noise", "band_limit"}
        assert (record.quality_score == 5.0) == (not degradations) or degradations[0]["severity"] < 0.2
        assert len(read_audio(tmp_path / "out" / record.path)) == 16_000
        assert record.captions == ("a hit",)
    assert len({record.quality_score for record in records}) > 3


def test_a_second_run_does_what_is_missing(manifest, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    path, _ = degrade_corpus(manifest, folder)
    content, times = path.read_bytes(), {file.name: file.stat().st_mtime_ns for file in folder.glob("audio/*")}
    lines = (folder / "progress.jsonl").read_text().splitlines(keepends=True)
    (folder / "progress.jsonl").write_text("".join(lines[:-1]) + lines[-1][:30])  # killed while writing
    degrade_corpus(manifest, folder)
    redone = {name for name, time in times.items() if (folder / "audio" / name).stat().st_mtime_ns != time}
    assert path.read_bytes() == content
    assert redone == {"t-v0.flac", "t-v1.flac"}
    with pytest.raises(ValueError, match="holds a corpus with other settings"):
        degrade_corpus(manifest, folder, settings=DegradeSettings(seed=1))


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


def test_unreadable_clips_are_listed_and_the_others_done(manifest, tmp_path, capsys):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    (tmp_path / "a.flac").write_bytes(b"no audio")
    with pytest.raises(SystemExit, match=r"(?s)1 clips could not be degraded.*a: `path` must be a readable"):
        main([str(manifest), str(tmp_path / "out"), "--versions", "1"])
    assert [record.id for record in read_manifest(tmp_path / "out" / "manifest.jsonl")] == ["b-v0", "t-v0"]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--kinds", "sparkle"], "`kinds` must be some of"), (["--versions", "0"], "`versions` must be at least 1")],
)
def test_bad_settings_are_refused(manifest, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main([str(manifest), str(tmp_path / "out"), *arguments])
