"""Quality scores (MOS) turned into what the model is told: levels, fractional levels and a text prefix.

A scorer rates music from 1 (bad) to 5 (excellent). How its ratings spread depends on the scorer and on the
music, so the thresholds between the levels come from the training set and travel with the weights.
Level 0 means "quality unknown"; a missing score (`None` or NaN) has it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qamdt.files import read_json, write_json
from qamdt.outputs import is_readable_by
from qamdt.quality_words import (
    MAX_SCORE,
    MIN_SCORE,
    NUM_LEVELS,
    PUBLISHED_WORDS,
    QUALITY_WORDS,
    UNKNOWN_LEVEL,
    quality_prefix,
)


# Where levels 2 to 5 begin: in standard deviations from the mean, or as shares of the clips.
_LEVEL_SIGMAS = (-2.0, -1.0, 1.0, 2.0)
_LEVEL_SHARES = (0.2, 0.4, 0.6, 0.8)
# A distribution too far from a bell leaves some sigma-rule level with less than this share of the clips.
_MIN_SHARE_PER_LEVEL = 0.005

Scores = float | Sequence[float] | np.ndarray | torch.Tensor


@dataclass(frozen=True, kw_only=True)
class QualityStats:
    """How quality scores are distributed in a training set, and where its levels begin.

    Level `k` holds the scores from `edges[k - 2]` (included) up to `edges[k - 1]` (excluded); levels 1 and 5
    are open towards the ends of the scale. `prefix_edges` separate the `words`, from the worst to the best: with the
    three published ones, scores up to `prefix_edges[0]` are called low, from `prefix_edges[1]` on high, and medium
    between the two (both conventions of QA-MDT). All words that there are when `words` is `None`.
    """

    mean: float
    std: float
    edges: tuple[float, float, float, float]
    prefix_edges: tuple[float, ...]
    scorer: str
    num_clips: int
    method: str = "sigma"
    words: tuple[str, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "words", tuple(QUALITY_WORDS if self.words is None else self.words))
        if not set(self.words) <= set(QUALITY_WORDS):
            raise ValueError(
                f"`words` must be among {list(QUALITY_WORDS)}, got {list(self.words)}; update the package."
            )
        object.__setattr__(self, "edges", tuple(float(edge) for edge in self.edges))
        object.__setattr__(self, "prefix_edges", tuple(float(edge) for edge in self.prefix_edges))
        for name, count in (("edges", NUM_LEVELS - 1), ("prefix_edges", len(self.words) - 1)):
            values = getattr(self, name)
            is_increasing = all(lower < upper for lower, upper in zip(values, values[1:], strict=False))
            if len(values) != count or not is_increasing:
                raise ValueError(f"`{name}` must be {count} increasing scores, got {values}.")

    @classmethod
    def from_scores(cls, scores: Scores, scorer: str, *, method: str | None = None) -> QualityStats:
        """Derives the thresholds from the scores of a training set; NaN scores are left out.

        Args:
            scores: The score of every clip.
            scorer: Name of what gave the scores; thresholds of different scorers do not mix.
            method: `"sigma"` puts the edges at one and two standard deviations around the mean, as published;
                `"quantile"` gives each level a fifth of the clips. `None` takes `"sigma"` when the scores are
                close enough to a bell that every level gets clips, else `"quantile"`.
        """
        scores = np.asarray(scores, dtype=np.float64).ravel()
        scores = scores[~np.isnan(scores)]
        num_distinct = len(np.unique(scores))
        if num_distinct < NUM_LEVELS:
            raise ValueError(
                f"`scores` must hold at least {NUM_LEVELS} distinct scores to set {NUM_LEVELS} levels apart, "
                f"got {num_distinct} distinct among {len(scores)}. Score more clips."
            )
        if method not in (None, "sigma", "quantile"):
            raise ValueError(f'`method` must be "sigma", "quantile" or None, got {method!r}.')

        mean, std = float(scores.mean()), float(scores.std())
        _, *words = QUALITY_WORDS.values()  # the first has no beginning
        edges = mean + std * np.array(_LEVEL_SIGMAS)
        prefix_edges = mean + std * np.array([word.begins_at_sigma for word in words])
        if method is None:
            shares = np.diff([0, *np.searchsorted(np.sort(scores), edges), len(scores)]) / len(scores)
            method = "sigma" if shares.min() >= _MIN_SHARE_PER_LEVEL else "quantile"
        if method == "quantile":
            word_shares = [word.begins_at_share for word in words]
            shares = sorted({*_LEVEL_SHARES, *word_shares})
            quantiles = dict(zip(shares, _quantiles(scores, shares), strict=True))
            edges = [quantiles[share] for share in _LEVEL_SHARES]
            prefix_edges = [quantiles[share] for share in word_shares]
        return cls(
            mean=mean,
            std=std,
            edges=tuple(edges),
            prefix_edges=tuple(prefix_edges),
            scorer=scorer,
            num_clips=len(scores),
            method=method,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QualityStats:
        """Builds the statistics from `to_dict()`'s result, refusing missing and unknown keys."""
        known = {field.name for field in fields(cls)}
        values = {"words": PUBLISHED_WORDS} | values  # older statistics know these alone
        if set(values) != known:
            raise ValueError(
                f"Quality statistics must have the keys {sorted(known)}, got {sorted(values)}: "
                f"missing {sorted(known - set(values))}, unknown {sorted(set(values) - known)}."
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def load(cls, path: str | os.PathLike) -> QualityStats:
        try:
            return cls.from_dict(read_json(path))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`path` must be a JSON file of quality statistics, got {str(path)!r}: {error}"
            ) from error

    def save(self, path: str | os.PathLike) -> None:
        write_json(path, self.to_dict())

    def level(self, mos: Scores | None) -> int | np.ndarray | torch.Tensor:
        """The level 1 to 5 of a score, 0 when it is unknown; arrays and tensors are taken element by element."""
        if mos is None:
            return UNKNOWN_LEVEL
        scores = np.asarray(mos, dtype=np.float64)
        levels = 1 + np.searchsorted(self.edges, scores, side="right")
        return _like(mos, np.where(np.isnan(scores), UNKNOWN_LEVEL, levels).astype(np.int64))

    def fractional_level(self, mos: Scores | None) -> float | np.ndarray | torch.Tensor:
        """A level between 1 and 5 that moves smoothly with the score, 0 when it is unknown.

        Whole levels lie in the middle between their edges; the outer levels count as wide as their neighbours,
        but not beyond the scale of 1 to 5.
        """
        if mos is None:
            return float(UNKNOWN_LEVEL)
        scores = np.asarray(mos, dtype=np.float64)
        levels = np.interp(scores, self._level_centres(), np.arange(1, NUM_LEVELS + 1))
        return _like(mos, np.where(np.isnan(scores), UNKNOWN_LEVEL, levels).astype(np.float32))

    def score(self, level: int) -> float:
        """The score in the middle of a level, the inverse of `fractional_level` at whole levels."""
        if level not in range(1, NUM_LEVELS + 1):
            raise ValueError(f"`level` must be 1 to {NUM_LEVELS}, got {level!r}.")
        return float(self._level_centres()[level - 1])

    def prefix(self, mos: float | None) -> str:
        """The text to put in front of a caption; empty when the score is unknown."""
        if mos is None or math.isnan(mos):
            return ""
        return quality_prefix(self.words[self._word_index(mos)])

    def prefixes_between(self, lowest: float, highest: float) -> list[str]:
        """The texts of all scores from `lowest` to `highest`, both included."""
        words = self.words[self._word_index(lowest) : self._word_index(highest) + 1]
        return [quality_prefix(word) for word in words]

    def _word_index(self, mos: float) -> int:
        first, *others = self.prefix_edges
        return int(mos > first) + sum(mos >= edge for edge in others)

    def _level_centres(self) -> np.ndarray:
        first, second, third, fourth = self.edges
        lowest = min(first, max(2 * first - second, MIN_SCORE))
        highest = max(fourth, min(2 * fourth - third, MAX_SCORE))
        bounds = np.array([lowest, *self.edges, highest])
        return (bounds[:-1] + bounds[1:]) / 2


def _quantiles(scores: np.ndarray, shares: list[float]) -> np.ndarray:
    """Quantiles of the scores, or of the distinct scores if ties make two quantiles equal, as when most are perfect."""
    quantiles = np.quantile(scores, shares)
    return quantiles if (np.diff(quantiles) > 0).all() else np.quantile(np.unique(scores), shares)


def _like(given: Scores, result: np.ndarray) -> int | float | np.ndarray | torch.Tensor:
    """Hands `result` back in the kind that was given: a number, a tensor, else an array."""
    if isinstance(given, torch.Tensor):
        return torch.from_numpy(result).to(given.device)
    return result.item() if result.ndim == 0 else result


# The thresholds that the published QA-MDT was trained with.
PUBLISHED_QUALITY_STATS = QualityStats(
    mean=3.8,
    std=0.2,
    edges=(3.4, 3.6, 4.0, 4.2),
    prefix_edges=(3.55, 4.05),
    scorer="qama",
    num_clips=0,
    words=PUBLISHED_WORDS,
)


def is_quality_file(path: Path) -> bool:
    """Whether a file holds quality statistics."""
    return is_readable_by(QualityStats.load, path)
