"""A manifest as a Parquet table and back is the same manifest; foreign tables are read, bad rows listed."""

import pytest

from data_prep.build_manifest import main as build_manifest
from data_prep.convert_manifest import main
from qamdt.audio import write_audio
from qamdt.manifest import Record, read_manifest, write_manifest


pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def test_there_and_back_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.convert_manifest.ROWS_PER_GROUP", 2)
    records = [
        Record(id="a", path="a.wav", duration_in_s=1.5),
        Record(
            id="été\u2028", path="b/ü.wav", duration_in_s=3, start_in_s=2.0, captions=("one", "[two]"), license="x"
        ),
        Record(
            id="c", path="c.wav", duration_in_s=1.0, tags={"n": [1, {"m": None}]}, extra={"caption": "x", "n": [0]}
        ),
        Record(
            id="d",
            path="d.wav",
            duration_in_s=4.0,
            quality_score=3.25,
            quality_frames=(3.0, 3.5),
            quality_frame_rate=0.5,
            quality_scorer="s@1",
            tempo_bpm=120.0,
            chords=((0.0, "Am"), (2.0, "F")),
            key="A minor",
        ),
    ]
    write_manifest(tmp_path / "m.jsonl", records)
    assert main([str(tmp_path / "m.jsonl"), str(tmp_path / "m.parquet")]) == 0
    assert parquet.read_table(tmp_path / "m.parquet").column("quality_score").to_pylist() == [None, None, None, 3.25]
    assert main([str(tmp_path / "m.parquet"), str(tmp_path / "back.jsonl")]) == 0
    assert read_manifest(tmp_path / "back.jsonl") == read_manifest(tmp_path / "m.jsonl")


def test_tables_from_elsewhere_are_read_and_bad_rows_listed(tmp_path, capsys):
    rows = [
        {
            "id": "a",
            "path": "a.wav",
            "duration_in_s": 2,
            "captions": "a song",
            "tags": {"bpm": 90, "key": None},
            "x": 7,
        },
        {"id": "b", "path": "../b.wav", "duration_in_s": 2, "captions": None, "tags": None, "x": None},
        {"id": "c", "path": "c.wav", "duration_in_s": None, "captions": None, "tags": None, "x": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert main([str(tmp_path / "t.parquet"), str(tmp_path / "t.jsonl")]) == 1
    (record,) = read_manifest(tmp_path / "t.jsonl")
    assert (record.captions, record.tags, record.extra) == (("a song",), {"bpm": 90}, {"x": 7})
    told = capsys.readouterr().err
    assert "row 2: `path` must be relative" in told
    assert "row 3: the fields ['duration_in_s'] are missing" in told


def test_what_cannot_be_converted_is_refused(tmp_path, capsys):
    (tmp_path / "t.parquet").write_bytes(b"no table")
    assert main([str(tmp_path / "t.parquet"), str(tmp_path / "t.jsonl")]) == 2
    assert not (tmp_path / "t.jsonl").exists()
    (tmp_path / "t.jsonl").write_text("mine")
    assert main([str(tmp_path / "t.parquet"), str(tmp_path / "t.jsonl")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([str(tmp_path / "t.parquet"), str(tmp_path / "t.csv")]) == 2
    assert main([str(tmp_path / "t.parquet"), str(tmp_path / "x" / "t.jsonl")]) == 2
    assert (tmp_path / "t.jsonl").read_text() == "mine"


def test_a_folder_of_sounds_with_its_metadata_is_read(tmp_path):
    import torch

    for i in range(2):
        write_audio(
            tmp_path / f"{i}.wav", torch.rand(32_000, generator=torch.Generator().manual_seed(i)) - 0.5, 16_000
        )
    (tmp_path / "metadata.csv").write_text("file_name,caption\n0.wav,a slow song\n1.wav,a fast song\n")
    assert build_manifest([str(tmp_path), "--table", str(tmp_path / "metadata.csv")]) == 0
    captions = {record.path: record.captions for record in read_manifest(tmp_path / "manifest.jsonl")}
    assert captions == {"0.wav": ("a slow song",), "1.wav": ("a fast song",)}
