"""Turns raw scores and statistics into labels: a Parquet table, and the thresholds in the form that `qamdt` reads.

Labels are a function of the score files and of one statistics file, so other thresholds need no new scoring, and new
music that is labelled with the statistics of an earlier collection keeps what its levels mean.

A level is 1 to 5, and 0 for a clip without score. `level_soft` shares a clip out to the two levels that its score lies
between; its mean is the fractional level of `qamdt.quality.QualityStats`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from qamdt.files import replacing
from qamdt.quality import NUM_LEVELS, QualityStats
from whisq.scoring.rows import ScoreRows, read_settings
from whisq.scoring.stats import ScoreStats, Thresholds


if TYPE_CHECKING:
    import pyarrow

ROWS_PER_GROUP = 8192


def finalize(
    scores: Sequence[str | Path],
    stats: ScoreStats,
    out: str | Path,
    *,
    method: str | None = None,
    thresholds: Thresholds | None = None,
    per_source: bool = False,
) -> Path:
    """Writes the labels of scored clips.

    Args:
        scores: Files of `whisq score`.
        stats: Statistics of these scores, or of an earlier collection whose levels these clips shall be labelled with.
        out: Parquet file to write.
        method: "sigma" or "quantile"; the one that the statistics name when `None`.
        thresholds: Thresholds to use instead of derived ones.
        per_source: Whether clips are compared with their source and not with all clips.

    Returns:
        The JSON file with the thresholds, beside `out`, which `qamdt.quality.QualityStats.load` reads.
    """
    pyarrow, parquet = _import_pyarrow()
    out = Path(out)
    quality_stats = stats.quality_stats(method=method, thresholds=thresholds, per_source=per_source)
    source_levels = {source: quality_stats.level(distribution.mean) for source, distribution in stats.sources.items()}
    schema = make_schema(pyarrow).with_metadata(
        {
            "quality_stats": json.dumps(quality_stats.to_dict()),
            "stats_id": stats.stats_id,
            "scorer": quality_stats.scorer,
            "scored_with": json.dumps({Path(path).name: read_settings(Path(path)) for path in scores}),
        }
    )
    with replacing(out) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for rows in _read_in_groups(scores, stats.scorer):
            labels = label_rows(rows, stats, quality_stats, source_levels, per_source=per_source)
            writer.write_table(pyarrow.Table.from_pylist(labels, schema))
    quality_path = quality_stats_path(out)
    quality_stats.save(quality_path)
    return quality_path


def is_label_file(path: Path) -> bool:
    """Whether a file is a table that `finalize` wrote."""
    pyarrow, parquet = _import_pyarrow()
    try:
        metadata = parquet.read_schema(path).metadata or {}
    except (pyarrow.ArrowException, OSError):
        return False
    return b"quality_stats" in metadata


def quality_stats_path(out: Path) -> Path:
    """Where the thresholds of a label file stand."""
    return out.with_suffix(".quality.json")


def label_rows(
    rows: Sequence[dict[str, Any]],
    stats: ScoreStats,
    quality_stats: QualityStats,
    source_levels: dict[str, int],
    *,
    per_source: bool,
) -> list[dict[str, Any]]:
    """Adds to rows of a score file what follows from the statistics.

    Args:
        rows: The rows.
        stats: Statistics of the collection.
        quality_stats: What `stats.quality_stats` returned.
        source_levels: Level of the mean score of each source.
        per_source: Whether scores are standardized by their source.
    """
    distribution = stats.overall_quality_per_source if per_source else stats.overall_quality
    labels = [row | {"stats_id": stats.stats_id, "level": 0, "prefix": "", "source_level": 0} for row in rows]
    scored = [label for label in labels if label["status"] == "ok"]
    if not scored:
        return labels
    judged = [judged_scores(row, stats, per_source=per_source) for row in scored]
    scores = np.array([score for score, _ in judged])
    curves = [curve for _, curve in judged]
    frame_levels = np.split(quality_stats.level(np.concatenate(curves)), np.cumsum(list(map(len, curves)))[:-1])
    columns = {
        "quality_score": scores.tolist(),
        "quality_frames": curves,
        "z": ((scores - distribution.mean) / (distribution.std or 1.0)).tolist(),
        "percentile": distribution.percentile(scores).tolist(),
        "level": quality_stats.level(scores).tolist(),
        "level_soft": soft_levels(quality_stats.fractional_level(scores)).tolist(),
        "frame_level": frame_levels,
        "prefix": [quality_stats.prefix(score).removesuffix(", ") for score in scores],
        "source_level": [source_levels.get(row.get("source", ""), 0) for row in scored],
        "overall_quality_min": [min(row["frame_overall_quality"]) for row in scored],
        "overall_quality_p10": [float(np.percentile(row["frame_overall_quality"], 10)) for row in scored],
    }
    for index, label in enumerate(scored):
        label |= {name: values[index] for name, values in columns.items()}
        if label.get("text_alignment") is not None and stats.text_alignment is not None:
            label["text_alignment_percentile"] = float(stats.text_alignment.percentile(label["text_alignment"]))
    return labels


def judged_scores(row: dict[str, Any], stats: ScoreStats, *, per_source: bool) -> tuple[float, list[float]]:
    """Returns the score and the curve that levels are made of: the raw ones, or those standardized by their source."""
    if not per_source:
        return row["overall_quality"], row["frame_overall_quality"]
    scores = np.array([row["overall_quality"], *row["frame_overall_quality"]])
    score, *curve = stats.standardize(scores, row.get("source", "")).round(4).tolist()
    return score, curve


def soft_levels(fractional_levels: np.ndarray) -> np.ndarray:
    """Shares clips out to the levels that their `fractional_levels` `(n,)` lie between; the shares `(n, 5)` add up to 1."""
    return np.maximum(0.0, 1.0 - np.abs(np.arange(1, NUM_LEVELS + 1) - fractional_levels[:, None]))


def make_schema(pyarrow: Any) -> pyarrow.Schema:
    """The columns of a label file."""
    text, single, byte = pyarrow.string(), pyarrow.float32(), pyarrow.int8()
    return pyarrow.schema(
        [
            ("id", text),
            ("path", text),
            ("source", text),
            ("prompt", text),
            ("status", text),
            ("error", text),
            ("flags", pyarrow.list_(text)),
            ("duration_in_s", single),
            ("sampling_rate", pyarrow.int32()),
            ("overall_quality", single),  # as scored, never changed
            ("overall_quality_min", single),  # of the curve
            ("overall_quality_p10", single),
            ("text_alignment", single),
            ("text_alignment_percentile", single),
            ("quality_score", single),  # what level and prefix come from: as scored, or standardized by the source
            ("z", single),
            ("percentile", single),
            ("level", byte),
            ("level_soft", pyarrow.list_(single)),
            ("prefix", text),
            ("source_level", byte),
            ("frame_hop_in_s", single),
            ("frame_overall_quality", pyarrow.list_(single)),
            ("quality_frames", pyarrow.list_(single)),
            ("frame_level", pyarrow.list_(byte)),
            ("scorer", text),
            ("stats_id", text),
        ]
    )


def _read_in_groups(scores: Sequence[str | Path], scorer: str) -> Iterator[list[dict[str, Any]]]:
    rows = iter(tqdm(ScoreRows(scores), desc="scores", unit="clip", disable=None))
    while group := list(islice(rows, ROWS_PER_GROUP)):
        for row in group:
            if row["scorer"] != scorer:
                raise ValueError(
                    f"clip {row['id']!r} was scored by {row['scorer']!r}, and the statistics are of {scorer!r}; "
                    "take statistics of the same scorer."
                )
        yield group


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow; install it with `pip install 'qamdt[labels]'`.") from error
    return pyarrow, parquet
