"""From scores to labels: statistics, thresholds, tables and filters, and that `qamdt` means the same by a level."""

import json

import numpy as np
import pytest

from qamdt.quality import QualityStats
from whisq.cli import main
from whisq.scoring.labels import finalize, soft_levels
from whisq.scoring.stats import ScoreStats, Thresholds, measure_scores


def write_scores(path, scores, *, sources=None, alignments=None, scorer="tiny@1"):
    rows = [
        {
            "id": f"clip-{i}",
            "path": f"/music/{i}.wav",
            "source": "" if sources is None else sources[i],
            "prompt": None,
            "status": "ok",
            "error": None,
            "flags": ["clipped"] if i == 1 else [],
            "duration_in_s": 1.0,
            "sampling_rate": 16_000,
            "overall_quality": round(float(score), 4),
            "text_alignment": None if alignments is None else round(float(alignments[i]), 4),
            "frame_hop_in_s": 0.5,
            "frame_overall_quality": [round(float(score), 3) - 0.1, min(round(float(score), 3) + 0.1, 5.0)],
            "scorer": scorer,
        }
        for i, score in enumerate(scores)
    ]
    rows.append(
        {"id": "bad", "path": "/x.wav", "status": "error", "error": "the audio is silent", "flags": ["silent"]}
        | {"overall_quality": None, "scorer": scorer}
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bell(count=400, mean=3.0, std=0.4, seed=0):
    return np.random.default_rng(seed).normal(mean, std, count).clip(1.2, 4.8).round(4)


def mostly_perfect(count=400):
    return np.where(np.arange(count) % 3 == 0, bell(count), 5.0)


@pytest.mark.parametrize("scores", [bell(), mostly_perfect(), np.linspace(1.5, 4.5, 7).round(4)])
def test_thresholds_are_those_that_qamdt_derives(tmp_path, scores):
    stats = measure_scores([write_scores(tmp_path / "scores.jsonl", scores)])
    stats.save(tmp_path / "stats.json")
    for method in (None, "sigma", "quantile"):
        expected = QualityStats.from_scores(scores, "tiny@1", method=method)
        for found in (stats, ScoreStats.load(tmp_path / "stats.json")):
            assert found.quality_stats(method=method) == expected


def test_levels_and_prefixes_are_those_of_qamdt(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    scores = write_scores(tmp_path / "scores.jsonl", bell(), alignments=bell(seed=1))
    (tmp_path / "scores.meta.json").write_text('{"audio_encoder": "tower@3"}')
    quality_path = finalize([scores], measure_scores([scores]), tmp_path / "labels.parquet")
    stats = QualityStats.load(quality_path)
    labels = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    assert len(labels) == 401
    for label in labels[:-1]:
        score = label["overall_quality"]
        assert label["level"] == stats.level(score)
        assert label["prefix"] + ", " == stats.prefix(score)
        assert label["frame_level"] == stats.level(np.array(label["quality_frames"])).tolist()
        assert np.dot(label["level_soft"], [1, 2, 3, 4, 5]) == pytest.approx(stats.fractional_level(score), abs=1e-5)
        assert sum(label["level_soft"]) == pytest.approx(1)
        assert label["overall_quality_min"] == pytest.approx(score - 0.1, abs=1e-3)
    ranks = np.argsort(np.argsort([label["overall_quality"] for label in labels[:-1]])) / 400 * 100
    assert np.abs(ranks - [label["percentile"] for label in labels[:-1]]).max() < 1.5
    assert all(0 <= label["text_alignment_percentile"] <= 100 for label in labels[:-1])
    bad = labels[-1]
    assert (bad["level"], bad["prefix"], bad["error"]) == (0, "", "the audio is silent")
    assert bad["quality_score"] is None
    metadata = pq.read_schema(tmp_path / "labels.parquet").metadata
    assert QualityStats.from_dict(json.loads(metadata[b"quality_stats"])) == stats
    assert json.loads(metadata[b"scored_with"]) == {"scores.jsonl": {"audio_encoder": "tower@3"}}


def test_new_thresholds_need_no_new_scoring(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    scores = str(write_scores(tmp_path / "scores.jsonl", bell()))
    stats, out = str(tmp_path / "stats.json"), tmp_path / "labels.parquet"
    assert main(["stats", scores, "-o", stats]) == 0
    levels = {}
    for name, options in {
        "as derived": [],
        "quantile": ["--method", "quantile"],
        "absolute": ["--edges", "1.1", "2", "2.5", "4.9", "--prefix-edges", "2", "4"],
    }.items():
        assert main(["finalize", scores, "--stats", stats, "-o", str(out), *options]) == 0
        levels[name] = np.array(pq.read_table(out)["level"][:-1])
    assert QualityStats.load(tmp_path / "labels.quality.json").method == "absolute"
    assert [np.mean(levels["quantile"] == level) for level in range(1, 6)] == pytest.approx([0.2] * 5, abs=0.01)
    assert np.mean(levels["as derived"] == 3) == pytest.approx(0.683, abs=0.05)
    assert set(levels["absolute"].tolist()) == {2, 3, 4}


def test_statistics_of_an_earlier_collection_keep_what_levels_mean(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    stats = measure_scores([write_scores(tmp_path / "old.jsonl", bell())])
    stats.save(tmp_path / "stats.json")
    better = write_scores(tmp_path / "new.jsonl", bell(mean=3.8, seed=2))
    finalize([better], ScoreStats.load(tmp_path / "stats.json"), tmp_path / "new.parquet")
    levels = np.array(pq.read_table(tmp_path / "new.parquet")["level"][:-1])
    assert levels.mean() > 4.3
    other = write_scores(tmp_path / "other.jsonl", bell(), scorer="tiny@2")
    with pytest.raises(ValueError, match="scored by 'tiny@2', and the statistics are of 'tiny@1'"):
        finalize([other], stats, tmp_path / "other.parquet")
    assert not (tmp_path / "other.parquet").exists()


def test_clips_can_be_compared_within_their_source(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    sources = ["folk" if i % 2 else "techno" for i in range(400)]
    scores = np.where(np.arange(400) % 2, bell(mean=3.4, std=0.2), bell(mean=2.4, std=0.3, seed=3))
    stats = measure_scores([write_scores(tmp_path / "scores.jsonl", scores, sources=sources)])
    means = {}
    for per_source in (False, True):
        path = finalize([tmp_path / "scores.jsonl"], stats, tmp_path / "labels.parquet", per_source=per_source)
        labels = pq.read_table(tmp_path / "labels.parquet").to_pylist()[:-1]
        means[per_source] = [
            np.mean([label["level"] for label in labels if label["source"] == s]) for s in ("folk", "techno")
        ]
        quality_stats = QualityStats.load(path)
        assert all(label["level"] == quality_stats.level(label["quality_score"]) for label in labels)
        assert {label["source"]: label["source_level"] for label in labels}["folk"] == quality_stats.level(3.4)
    assert means[False][0] - means[False][1] > 1
    assert means[True] == pytest.approx([3, 3], abs=0.1)
    assert quality_stats.scorer == "tiny@1, per source"


def test_statistics_survive_the_disk(tmp_path):
    scores = write_scores(tmp_path / "scores.jsonl", bell(), alignments=bell(seed=1))
    stats = measure_scores([scores])
    stats.save(tmp_path / "stats.json")
    assert ScoreStats.load(tmp_path / "stats.json") == stats
    assert stats.num_errors == 1
    assert stats.overall_quality.num_clips == sum(stats.overall_quality.histogram) == 400
    assert stats.text_alignment.thresholds == {}
    assert measure_scores([scores]).stats_id == stats.stats_id
    (tmp_path / "half.json").write_text((tmp_path / "stats.json").read_text()[:100])
    with pytest.raises(ValueError, match="is no file that `whisq stats` wrote"):
        ScoreStats.load(tmp_path / "half.json")


def test_scores_of_two_scorers_do_not_mix(tmp_path):
    one = write_scores(tmp_path / "1.jsonl", bell())
    two = write_scores(tmp_path / "2.jsonl", bell(), scorer="tiny@2")
    two.write_text(two.read_text().replace('"id": "', '"id": "other '))
    with pytest.raises(ValueError, match="one scorer, got"):
        measure_scores([one, two])
    with pytest.raises(ValueError, match="has rows in two score files; give each file once"):
        finalize([one, one], measure_scores([one]), tmp_path / "labels.parquet")


def test_of_several_rows_of_a_clip_the_last_one_counts(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    once = write_scores(tmp_path / "once.jsonl", [1.5, *bell(99)], alignments=np.full(100, 2.0))
    rows = once.read_text().splitlines(keepends=True)
    outdated = [json.dumps(json.loads(row) | {"overall_quality": 4.9, "scorer": "tiny@0"}) + "\n" for row in rows[:3]]
    (tmp_path / "again.jsonl").write_text("".join([*outdated, *rows]))
    kept = {}
    for name in ("once", "again"):
        scores, labels = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.parquet"
        stats = measure_scores([scores])
        finalize([scores], stats, labels)
        assert main(["filter", str(scores), "-o", str(tmp_path / "kept.jsonl"), "--min-omq", "3"]) == 0
        quality = [stats.overall_quality, stats.quality_stats()]
        kept[name] = quality, pq.read_table(labels).drop(["stats_id"]), (tmp_path / "kept.jsonl").read_text()
    assert kept["once"] == kept["again"]


def test_too_few_scores_give_no_levels(tmp_path):
    stats = measure_scores([write_scores(tmp_path / "scores.jsonl", [3.0, 3.5])])
    with pytest.raises(ValueError, match="at least 5 distinct scores"):
        stats.quality_stats()
    given = stats.quality_stats(thresholds=Thresholds(edges=(2, 3, 4, 4.5), prefix_edges=(2, 4)))
    assert given.method == "absolute"
    with pytest.raises(ValueError, match="`edges` must be 4 increasing scores"):
        stats.quality_stats(thresholds=Thresholds(edges=(2, 3, 3, 4), prefix_edges=(2, 4)))


def test_a_clip_is_shared_out_to_the_levels_it_lies_between():
    assert soft_levels(np.array([2.0, 5.0, 3.25])).tolist() == [
        [0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0.75, 0.25, 0],
    ]


def test_filtering_keeps_manifest_lines_as_they_are(tmp_path, capsys):
    alignments = np.linspace(1, 5, 100)
    scores = write_scores(tmp_path / "scores.jsonl", np.linspace(1.5, 4.5, 100)[::-1], alignments=alignments)
    lines = [f'{{"id": "clip-{i}",  "path": "{i}.wav"}}\n' for i in range(100)] + ['{"path": "unscored.wav"}\n']
    (tmp_path / "m.jsonl").write_text("".join(lines))
    command = ["filter", str(scores), "-o", str(tmp_path / "kept.jsonl"), "--ta-min-pct", "10"]
    assert main([*command, "--manifest", str(tmp_path / "m.jsonl"), "--min-omq", "2", "--drop-flags", "clipped"]) == 0
    assert (tmp_path / "kept.jsonl").read_text() == "".join(lines[10:83])
    out = capsys.readouterr().out
    assert "kept 73 clips" in out
    assert "dropped 17: quality too low" in out
    assert "dropped 9: text alignment in too low a percentile" in out
    assert "dropped 1: flag clipped" in out
    assert "dropped 1: without score" in out
    (tmp_path / "m.jsonl").write_text("".join([*lines, '{"id": 3}\n']))
    assert main([*command, "--manifest", str(tmp_path / "m.jsonl")]) == 1
    said = capsys.readouterr()
    assert "kept 90 clips" in said.out
    assert "dropped: m.jsonl, line 102: the fields ['path'] are missing" in said.err
    (tmp_path / "kept.jsonl").unlink()
    assert main([*command, "--manifest", str(tmp_path / "elsewhere" / "m.jsonl")]) == 1
    assert "must lie beside the manifest" in capsys.readouterr().err


def test_filtering_by_text_needs_text(tmp_path, capsys):
    scores = str(write_scores(tmp_path / "scores.jsonl", bell()))
    assert main(["filter", scores, "-o", str(tmp_path / "kept.jsonl"), "--ta-min-pct", "10"]) == 1
    assert "no clip has any; score the clips with prompts" in capsys.readouterr().err
    assert main(["filter", scores, "-o", str(tmp_path / "kept.jsonl"), "--omq-min-pct", "25"]) == 0
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == pytest.approx(300, abs=2)


@pytest.mark.parametrize(
    "change",
    [{"sampling_rate": 2**40}, {"sampling_rate": 0}, {"duration_in_s": -5.0}, {"frame_overall_quality": [99.0]}]
    + [{"start_in_s": -1}, {"overall_quality": "4.2"}, {"overall_quality": True}, {"text_alignment": 0.5}],
)
def test_a_row_that_nobody_scored_ends_the_job_by_its_line(tmp_path, capsys, change):
    path = write_scores(tmp_path / "s.jsonl", bell(8))
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | change)
    path.write_text("\n".join([*lines, ""]))
    assert main(["stats", str(path), "-o", str(tmp_path / "stats.json")]) == 1
    assert f"line 4: `{next(iter(change))}` of a row" in capsys.readouterr().err
