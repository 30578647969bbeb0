"""Statistics of a scored collection, and the thresholds between quality levels that follow from them.

Of each row its scores are kept, eight bytes each. The result is a small JSON file: with it, more music of the same kind
is labelled later without moving what a level means.

Thresholds are derived by `qamdt.quality.QualityStats`, in two ways. `sigma` puts them one and two standard deviations
around the mean; `quantile` gives each of the five levels a fifth of the clips. Scores can be taken as they are, or
`per_source`: each collection's scores are moved and stretched to the mean and deviation of all, so that a level compares
clips within their collection.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qamdt.files import read_json, write_json
from qamdt.quality import MAX_SCORE, MIN_SCORE, NUM_LEVELS, QualityStats
from whisq.scoring.rows import ScoreRows


NUM_BINS = 64
METHODS = ("sigma", "quantile")
PER_SOURCE_SUFFIX = ", per source"

_MIN_CLIPS_PER_SOURCE = 5


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where levels 2 to 5 begin, and the scores up to which music is called low and from which it is called high."""

    edges: tuple[float, ...]
    prefix_edges: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How scores are distributed.

    Args:
        num_clips: How many there are.
        mean: Their mean.
        std: Their standard deviation.
        minimum: The smallest.
        maximum: The largest.
        percentiles: The scores below which 1, 2, … 99 per cent lie; empty for a source.
        histogram: Clips in 64 equal bins between 1 and 5; empty for a source.
        thresholds: Level thresholds by method; empty for a source and for text alignment.
        method: The method to use unless another is asked for.
    """

    num_clips: int
    mean: float
    std: float
    minimum: float
    maximum: float
    percentiles: tuple[float, ...] = ()
    histogram: tuple[int, ...] = ()
    thresholds: dict[str, Thresholds] = field(default_factory=dict)
    method: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Distribution:
        """Builds a distribution from one that `dataclasses.asdict` took apart."""
        lists = {name: tuple(values[name]) for name in ("percentiles", "histogram")}
        thresholds = {
            name: Thresholds(edges=tuple(edges["edges"]), prefix_edges=tuple(edges["prefix_edges"]))
            for name, edges in values["thresholds"].items()
        }
        return cls(**values | lists | {"thresholds": thresholds})

    def percentile(self, scores: np.ndarray) -> np.ndarray:
        """The share of clips, in per cent, that lie below each score."""
        points = np.maximum.accumulate([self.minimum, *self.percentiles, self.maximum])
        return np.interp(scores, points, np.arange(101.0))


@dataclass(frozen=True, kw_only=True)
class ScoreStats:
    """Statistics of a scored collection.

    Args:
        stats_id: Names these statistics by their content; labels carry it.
        scorer: What gave the scores.
        num_errors: Clips without score.
        overall_quality: Distribution of the clips' quality.
        overall_quality_per_source: The same after every source was moved and stretched to the mean and deviation of all.
        text_alignment: Distribution of text alignment; `None` when no clip has one.
        sources: Distribution of the quality of each source.
        created_from: SHA-256 of each score file.
    """

    stats_id: str
    scorer: str
    num_errors: int
    overall_quality: Distribution
    overall_quality_per_source: Distribution
    text_alignment: Distribution | None
    sources: dict[str, Distribution]
    created_from: dict[str, str]

    @classmethod
    def load(cls, path: str | Path) -> ScoreStats:
        """Reads the file that `save` wrote."""
        try:
            values = read_json(path)
            alignment = values["text_alignment"]
            parsed = {
                "overall_quality": Distribution.from_dict(values["overall_quality"]),
                "overall_quality_per_source": Distribution.from_dict(values["overall_quality_per_source"]),
                "text_alignment": None if alignment is None else Distribution.from_dict(alignment),
                "sources": {name: Distribution.from_dict(source) for name, source in values["sources"].items()},
            }
            return cls(**values | parsed)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} is no file that `whisq stats` wrote: {error}.") from error

    def save(self, path: str | Path) -> None:
        """Writes the statistics as JSON."""
        write_json(path, asdict(self))

    def standardize(self, scores: np.ndarray, source: str) -> np.ndarray:
        """Moves and stretches the scores of one source to the mean and deviation of all clips.

        A source that the statistics do not know, or that has too few or only equal scores, keeps its scores.
        """
        known = self.sources.get(source)
        return scores if known is None else _stretch(scores, known, self.overall_quality)

    def quality_stats(
        self, *, method: str | None = None, thresholds: Thresholds | None = None, per_source: bool = False
    ) -> QualityStats:
        """Returns what turns scores into levels and words.

        Args:
            method: "sigma" or "quantile"; the one that suits the distribution when `None`.
            thresholds: Thresholds to use instead of derived ones.
            per_source: Whether the scores are those that `standardize` returns.
        """
        distribution = self.overall_quality_per_source if per_source else self.overall_quality
        if method is not None and thresholds is not None:
            raise ValueError(f"give `method` or `thresholds`, got {method!r} and {thresholds}.")
        method = "absolute" if thresholds is not None else method or distribution.method
        thresholds = thresholds or distribution.thresholds.get(method)
        if thresholds is None:
            raise ValueError(
                f"thresholds can be derived from at least {NUM_LEVELS} distinct scores, and the "
                f"{distribution.num_clips} clips have fewer. Score more clips, or give thresholds."
            )
        return QualityStats(
            mean=distribution.mean,
            std=distribution.std,
            edges=thresholds.edges,
            prefix_edges=thresholds.prefix_edges,
            scorer=self.scorer + PER_SOURCE_SUFFIX * per_source,
            num_clips=distribution.num_clips,
            method=method,
        )


def measure_scores(paths: Sequence[str | Path], *, method: str | None = None) -> ScoreStats:
    """Returns the statistics of score files.

    Args:
        paths: Files of `whisq score`.
        method: What levels are derived by unless something else is asked for later; the one that suits when `None`.
    """
    if method not in (None, *METHODS):
        raise ValueError(f"`method` must be one of {METHODS} or None, got {method!r}.")
    by_source: dict[str, array] = defaultdict(lambda: array("d"))
    alignment = array("d")
    scorers, num_errors = set(), 0
    for row in tqdm(ScoreRows(paths), desc="scores", unit="clip", disable=None):
        if row["status"] != "ok":
            num_errors += 1
            continue
        scorers.add(row["scorer"])
        by_source[row.get("source", "")].append(row["overall_quality"])
        if row.get("text_alignment") is not None:
            alignment.append(row["text_alignment"])
    if len(scorers) != 1:
        raise ValueError(
            f"scores must come from one scorer, got {sorted(scorers) or 'no scored clip at all'}; keep others apart."
        )
    scores = {source: np.asarray(values) for source, values in sorted(by_source.items())}
    sources = {source: Distribution(**_moments(values)) for source, values in scores.items()}
    everything = np.concatenate(list(scores.values()))
    overall = _describe(everything)
    standardized = np.concatenate([_stretch(values, sources[source], overall) for source, values in scores.items()])
    facts = {
        "scorer": scorers.pop(),
        "num_errors": num_errors,
        "overall_quality": _add_thresholds(overall, everything, method),
        "overall_quality_per_source": _add_thresholds(_describe(standardized), standardized, method),
        "text_alignment": _describe(np.asarray(alignment)) if alignment else None,
        "sources": sources,
        "created_from": {Path(path).name: _digest(Path(path)) for path in paths},
    }
    content = json.dumps({name: _plain(value) for name, value in facts.items()}, sort_keys=True)
    return ScoreStats(stats_id=hashlib.sha256(content.encode()).hexdigest()[:12], **facts)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(scores: np.ndarray) -> Distribution:
    histogram, _ = np.histogram(scores, NUM_BINS, range=(MIN_SCORE, MAX_SCORE))
    return Distribution(
        **_moments(scores),
        percentiles=tuple(np.percentile(scores, np.arange(1, 100)).tolist()),
        histogram=tuple(histogram.tolist()),
    )


def _add_thresholds(distribution: Distribution, scores: np.ndarray, method: str | None) -> Distribution:
    """Adds the thresholds of every method, and which of them suits unless `method` says so; none for too few scores."""
    if len(np.unique(scores)) < NUM_LEVELS:
        return replace(distribution, method=method)
    suited, *derived = (QualityStats.from_scores(scores, "", method=name) for name in (method, *METHODS))
    thresholds = {s.method: Thresholds(edges=s.edges, prefix_edges=s.prefix_edges) for s in derived}
    return replace(distribution, thresholds=thresholds, method=suited.method)


def _moments(scores: np.ndarray) -> dict[str, float]:
    return {
        "num_clips": len(scores),
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        "minimum": float(scores.min()),
        "maximum": float(scores.max()),
    }


def _stretch(scores: np.ndarray, source: Distribution, overall: Distribution) -> np.ndarray:
    """Moves scores of a source to the mean and deviation of all; too few or equal ones stay as they are."""
    if source.num_clips < _MIN_CLIPS_PER_SOURCE or source.std == 0:
        return scores
    return np.clip(overall.mean + (scores - source.mean) * (overall.std / source.std), MIN_SCORE, MAX_SCORE)


def _plain(value: Any) -> Any:
    if isinstance(value, Distribution):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
