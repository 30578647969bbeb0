"""Scores joined to a manifest: what the readers of manifests, latents and statistics make of them."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep.encode_latents import main as encode_latents
from data_prep.label_quality import main
from qamdt.audio import write_audio
from qamdt.latent_folder import LatentReader
from qamdt.manifest import Record, read_manifest, write_manifest
from qamdt.quality import QualityStats
from whisq.cli import main as whisq
from whisq.scoring.stats import measure_scores


SECONDS = 1.28


@pytest.fixture
def corpus(tmp_path):
    """Eight clips with scores: each a little better, its second half one point above its first; one has no score."""
    records, rows = [], []
    for i in range(8):
        times = torch.arange(round(SECONDS * 16_000)) / 16_000
        write_audio(tmp_path / f"{i}.wav", 0.4 * torch.sin(2 * math.pi * 100 * (i + 1) * times), 16_000)
        records.append(
            Record(
                id=f"clip-{i}",
                path=f"{i}.wav",
                duration_in_s=SECONDS,
                captions=("song",),
                source="folk" if i % 2 else "techno",
                quality_score=4.5,
                quality_frames=(4.5, 4.5),
                quality_frame_rate=2.0,
                quality_scorer="panel",
                extra={"mood": "calm"},
            )
        )
        score = 2.0 + 0.2 * i
        row = {"id": f"clip-{i}", "source": records[-1].source, "scorer": "tiny@1", "flags": ["clipped"]}
        row |= {"status": "ok", "error": None, "overall_quality": score, "text_alignment": 3.0, "frame_hop_in_s": 0.32}
        rows.append(row | {"frame_overall_quality": [score - 0.5] * 2 + [score + 0.5] * 2})
    rows[5] |= {"status": "error", "error": "the audio is silent", "overall_quality": None}
    write_manifest(tmp_path / "manifest.jsonl", records)
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def label(corpus, *options):
    arguments = ["--manifest", corpus / "manifest.jsonl", "--scores", corpus / "scores.jsonl"]
    return main([*map(str, arguments), "--out", str(corpus / "labelled.jsonl"), *map(str, options)])


def test_records_get_score_curve_level_and_prefix(corpus, capsys):
    assert label(corpus) == 1
    stats = QualityStats.load(corpus / "labelled.quality.json")
    records = read_manifest(corpus / "labelled.jsonl")
    assert [record.id for record in records] == [f"clip-{i}" for i in range(8)]
    for i, record in enumerate(records):
        if i == 5:
            continue
        assert record.quality_score == pytest.approx(2.0 + 0.2 * i)
        assert record.quality_frames == pytest.approx([1.5 + 0.2 * i] * 2 + [2.5 + 0.2 * i] * 2)
        assert (record.quality_frame_rate, record.quality_scorer) == (1 / 0.32, "tiny@1")
        assert record.extra["quality_level"] == stats.level(record.quality_score)
        assert record.extra["quality_prefix"] == stats.prefix(record.quality_score)
        assert record.extra["text_alignment"] == 3.0
        assert record.extra["quality_flags"] == ["clipped"]
    unlabelled = records[5]
    assert (unlabelled.quality_score, unlabelled.quality_frames, unlabelled.quality_scorer) == (None, None, None)
    assert unlabelled.extra == {"mood": "calm"}
    assert "1 clips without score, listed in" in capsys.readouterr().err
    listed = [json.loads(line) for line in (corpus / "labelled.unlabelled.jsonl").read_text().splitlines()]
    assert listed == [{"id": "clip-5", "path": "5.wav", "error": "the audio is silent"}]


def test_the_curve_lands_on_the_latent_grid(corpus, encoders_dir, tmp_path):
    label(corpus)
    assert (
        whisq(["stats", str(corpus / "scores.jsonl"), "-o", str(corpus / "stats.json"), "--method", "quantile"]) == 0
    )
    assert label(corpus, "--stats", corpus / "stats.json") == 1
    arguments = {
        "manifest": corpus / "labelled.jsonl",
        "quality-stats": corpus / "labelled.quality.json",
        "vae": encoders_dir / "vae",
        "text-encoder": encoders_dir / "text",
        "out": tmp_path / "latents",
    }
    assert encode_latents([f"--{name}={path}" for name, path in arguments.items()]) == 0

    index = json.loads((tmp_path / "latents" / "index.json").read_text())
    assert index["quality"] == QualityStats.load(corpus / "labelled.quality.json").to_dict()
    assert index["quality"]["method"] == "quantile"
    shards = LatentReader(tmp_path / "latents")
    assert int(shards.lengths[0]) == 32  # 1.28 s at 25 latent frames a second
    for number, record in enumerate(shards.records):
        curve = shards.read(number, 0, 32)[2]["quality"].numpy()
        if record.id == "clip-5":
            assert np.isnan(curve).all()
            continue
        low, high = record.quality_score - 0.5, record.quality_score + 0.5
        assert curve[:12] == pytest.approx([low] * 12, abs=1e-5)  # up to the middle of the second value, 0.48 s
        assert curve[20:] == pytest.approx([high] * 12, abs=1e-5)  # from the middle of the third, 0.8 s
        assert (np.diff(curve) >= 0).all()
        assert curve.mean() == pytest.approx(record.quality_score, abs=1e-5)


def test_thresholds_of_another_scorer_are_refused(corpus, tmp_path, capsys):
    label(corpus)
    path = corpus / "labelled.quality.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scorer": "tiny@2"}))
    arguments = [
        "--manifest",
        corpus / "labelled.jsonl",
        "--quality-stats",
        path,
        "--out",
        tmp_path / "o",
    ]
    assert encode_latents([*map(str, arguments)]) == 2
    assert "holds the thresholds of 'tiny@2'" in capsys.readouterr().err


def test_labels_can_be_relative_to_the_source(corpus):
    rows = [json.loads(line) for line in (corpus / "scores.jsonl").read_text().splitlines()]
    rows[5] |= {"status": "ok", "error": None, "overall_quality": 3.0}
    extra = [
        row | {"id": f"more-{i}-{j}", "overall_quality": row["overall_quality"] + 0.05 * i * (j - 3)}
        for i in (1, 2)
        for j, row in enumerate(rows)
    ]  # a source needs five clips
    (corpus / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + extra))
    assert label(corpus, "--per-source") == 0
    records = read_manifest(corpus / "labelled.jsonl")
    stats = measure_scores([corpus / "scores.jsonl"])
    for record, row in zip(records, rows, strict=True):
        source, everything = stats.sources[record.source], stats.overall_quality
        z = (row["overall_quality"] - source.mean) / source.std
        assert record.quality_score == pytest.approx(everything.mean + z * everything.std, abs=1e-3)
        assert np.mean(record.quality_frames) == pytest.approx(record.quality_score, abs=1e-3)
        assert record.quality_scorer == "tiny@1, per source"


def test_lines_that_describe_no_clip_are_listed(corpus, capsys):
    label(corpus)
    once = (corpus / "labelled.jsonl").read_bytes()
    text = (corpus / "manifest.jsonl").read_text()
    (corpus / "manifest.jsonl").write_text('{"id": "x", "path": "../x.wav", "duration_in_s": 1.0}\n' + text)
    assert label(corpus) == 1
    assert (corpus / "labelled.jsonl").read_bytes() == once
    first = json.loads((corpus / "labelled.unlabelled.jsonl").read_text().splitlines()[0])
    assert first["line"] == 1
    assert "stay inside the manifest's folder" in first["error"]


def test_of_several_rows_of_a_clip_the_last_one_counts(corpus):
    label(corpus)
    once = (corpus / "labelled.jsonl").read_bytes()
    rows = (corpus / "scores.jsonl").read_text()
    outdated = json.dumps(json.loads(rows.splitlines()[0]) | {"overall_quality": 1.0, "text_alignment": 1.0}) + "\n"
    (corpus / "scores.jsonl").write_text(outdated + rows)
    label(corpus)
    assert (corpus / "labelled.jsonl").read_bytes() == once


def test_labelling_again_replaces_the_labels(corpus):
    label(corpus)
    once = (corpus / "labelled.jsonl").read_bytes()
    (corpus / "manifest.jsonl").write_bytes(once)
    assert label(corpus) == 1
    assert (corpus / "labelled.jsonl").read_bytes() == once


def test_what_does_not_fit_is_refused(corpus, tmp_path, capsys):
    arguments = ["--manifest", corpus / "manifest.jsonl", "--scores", corpus / "scores.jsonl"]
    (tmp_path / "elsewhere").mkdir()
    assert main([*map(str, arguments), "--out", str(tmp_path / "elsewhere" / "m.jsonl")]) == 2
    assert "must lie beside the manifest" in capsys.readouterr().err
    assert label(corpus, "--edges", "2", "3", "4", "4.5") == 2
    assert "--edges and --prefix-edges go together" in capsys.readouterr().err


def test_a_score_of_another_sound_labels_nothing(corpus, scorer_dir):
    assert (
        whisq(["score", str(corpus / "manifest.jsonl"), "-o", str(corpus / "new.jsonl"), "--model", str(scorer_dir)])
        == 0
    )
    times = torch.arange(round(SECONDS * 16_000)) / 16_000
    write_audio(corpus / "3.wav", 0.3 * torch.sin(900 * times), 16_000)
    os.utime(corpus / "3.wav", ns=(0, 0))
    (corpus / "2.wav").unlink()
    records = read_manifest(corpus / "manifest.jsonl")
    records[4] = replace(records[4], start_in_s=0.3, duration_in_s=SECONDS - 0.3)
    write_manifest(corpus / "manifest.jsonl", records)
    command = ["--manifest", str(corpus / "manifest.jsonl"), "--scores", str(corpus / "new.jsonl")]
    edges = ["--edges", "2", "3", "4", "4.5", "--prefix-edges", "2", "4"]
    assert main([*command, "--out", str(corpus / "labelled.jsonl"), *edges]) == 1
    scored = {record.id: record.quality_score for record in read_manifest(corpus / "labelled.jsonl")}
    assert [clip for clip, score in scored.items() if score is None] == ["clip-3", "clip-4"]
    listed = (corpus / "labelled.unlabelled.jsonl").read_text()
    assert listed.count("its sound has changed since it was scored; run `whisq score` again") == 2
    kept = corpus / "kept.jsonl"
    command = ["filter", str(corpus / "new.jsonl"), "--manifest", str(corpus / "manifest.jsonl"), "-o", str(kept)]
    assert whisq([*command, "--min-omq", "1"]) == 0
    assert {record.id for record in read_manifest(kept)} == scored.keys() - {"clip-3", "clip-4"}
