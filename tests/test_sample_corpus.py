"""The corpus that ships with the project is whole, small, and what its script makes."""

import pytest

from data_prep.make_sample_corpus import SAMPLE_CORPUS_DIR, make_sample_corpus
from data_prep.synthesis import DEFAULT_SOUNDFONT
from qamdt.audio import SAMPLING_RATE, read_audio
from qamdt.manifest import read_manifest


MANIFEST = SAMPLE_CORPUS_DIR / "manifest.jsonl"


def test_every_clip_is_there_and_as_long_as_its_record_says():
    records = read_manifest(MANIFEST)
    assert len(records) >= 40
    for record in records:
        waveform = read_audio(SAMPLE_CORPUS_DIR / record.path)
        assert len(waveform) == record.duration_in_s * SAMPLING_RATE
        assert waveform.abs().max() > 0.1
    assert {record.path for record in records} == {f"audio/{f.name}" for f in (SAMPLE_CORPUS_DIR / "audio").iterdir()}


def test_it_is_small_captioned_scored_and_free():
    assert sum(file.stat().st_size for file in SAMPLE_CORPUS_DIR.rglob("*") if file.is_file()) < 3_000_000
    records = read_manifest(MANIFEST)
    assert all(record.captions and record.license for record in records)
    scores = [record.quality_score for record in records]
    assert min(scores) < 2.2
    assert max(scores) > 4.4
    assert {record.tags["split"] for record in records} == {"train", "test"}


def test_the_script_makes_it(tmp_path):
    pytest.importorskip("fluidsynth")
    if not DEFAULT_SOUNDFONT.is_file():
        pytest.skip(f"needs the soundfont {DEFAULT_SOUNDFONT}")
    records = read_manifest(make_sample_corpus(tmp_path, num_pieces=1))
    shipped = read_manifest(MANIFEST)[: len(records)]
    for made, kept in zip(records, shipped, strict=True):
        assert made.captions == kept.captions
        assert made.tags == kept.tags
        assert made.quality_score == pytest.approx(kept.quality_score, abs=0.05)
        assert (tmp_path / made.path).is_file()
