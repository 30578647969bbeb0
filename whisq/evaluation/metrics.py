"""How well predicted ratings agree with people's: the four figures of the AudioMOS challenge, with intervals.

Utterance level compares clips, system level compares the means of the systems that made them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


FIGURES = ("mse", "lcc", "srcc", "ktau")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of predictions with ratings; a correlation with a constant is NaN.

    Args:
        mse: Mean squared error.
        lcc: Pearson's linear correlation coefficient.
        srcc: Spearman's rank correlation coefficient.
        ktau: Kendall's rank correlation tau-b.
        count: How many pairs were compared.
        intervals: Bootstrap interval `(low, high)` of each figure, empty when none was asked for.
    """

    mse: float
    lcc: float
    srcc: float
    ktau: float
    count: int
    intervals: Mapping[str, tuple[float, float]]

    def to_dict(self) -> dict:
        """Returns the figures as JSON can hold them, with `null` for NaN."""
        figures = {name: _finite_or_none(getattr(self, name)) for name in FIGURES}
        intervals = {name: [_finite_or_none(end) for end in ends] for name, ends in self.intervals.items()}
        return {**figures, "count": self.count, "intervals": intervals}


def measure_agreement(
    ratings: Sequence[float],
    predictions: Sequence[float],
    *,
    num_resamples: int = 0,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Compares predictions with ratings.

    Args:
        ratings: What people said, one value per clip or system.
        predictions: What the model said, in the same order.
        num_resamples: Bootstrap resamples of the pairs for the percentile intervals; none when 0.
        confidence_level: Share of resamples that an interval holds.
        seed: Seed of the resampling.
    """
    ratings, predictions = np.asarray(ratings, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if ratings.ndim != 1 or ratings.shape != predictions.shape:
        raise ValueError(
            f"`ratings` and `predictions` must be two rows of equal length, got {ratings.shape} and {predictions.shape}."
        )
    if not (np.isfinite(ratings).all() and np.isfinite(predictions).all()):
        raise ValueError("`ratings` and `predictions` must be finite; leave out the clips that have none.")
    figures = _figures(ratings, predictions)
    intervals = {}
    if num_resamples and len(ratings) > 2:
        with warnings.catch_warnings():
            # A resample that is constant has no correlation; scipy tells so for each.
            warnings.simplefilter("ignore")
            resampled = stats.bootstrap(
                (ratings, predictions),
                _figures,
                paired=True,
                vectorized=True,
                n_resamples=num_resamples,
                method="percentile",
                rng=np.random.default_rng(seed),
            ).bootstrap_distribution  # (4, R)
            tail = 100 * (1 - confidence_level) / 2
            ends = np.nanpercentile(resampled, [tail, 100 - tail], axis=1).T
        intervals = {name: (float(low), float(high)) for name, (low, high) in zip(FIGURES, ends, strict=True)}
    return Agreement(**dict(zip(FIGURES, figures.tolist(), strict=True)), count=len(ratings), intervals=intervals)


def average_by_system(systems: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Returns the mean value of each system, sorted by its name."""
    sums: dict[str, list[float]] = {}
    for system, value in zip(systems, values, strict=True):
        sums.setdefault(system, []).append(float(value))
    return {system: math.fsum(sums[system]) / len(sums[system]) for system in sorted(sums)}


def measure_system_agreement(
    systems: Sequence[str],
    ratings: Sequence[float],
    predictions: Sequence[float],
    *,
    system_ratings: Mapping[str, float] | None = None,
    num_resamples: int = 0,
    seed: int = 0,
) -> Agreement:
    """Compares the mean prediction of each system with its mean rating.

    Args:
        systems: The system of each clip.
        ratings: What people said of each clip.
        predictions: What the model said of each clip.
        system_ratings: Mean rating of systems over more clips than these, as the challenge publishes them; systems
            that it lacks are averaged here.
        num_resamples: Bootstrap resamples of the systems; no intervals when 0.
        seed: Seed of the resampling.
    """
    truth = average_by_system(systems, ratings) | {
        system: rating for system, rating in (system_ratings or {}).items() if system in set(systems)
    }
    predicted = average_by_system(systems, predictions)
    return measure_agreement(
        [truth[system] for system in predicted], list(predicted.values()), num_resamples=num_resamples, seed=seed
    )


def _figures(ratings: np.ndarray, predictions: np.ndarray, axis: int = -1) -> np.ndarray:
    """Returns the four figures, in the order of `FIGURES`, `(4, ...)`; pairs, or rows of pairs, lie along the last axis."""
    if ratings.shape[axis] == 0:
        return np.full((4, *ratings.shape[:-1]), math.nan)
    error = np.mean((ratings - predictions) ** 2, axis=axis)
    if ratings.shape[axis] < 2:
        return np.stack([error, *[np.full_like(error, math.nan)] * 3])
    ranks = stats.rankdata(ratings, axis=axis), stats.rankdata(predictions, axis=axis)
    rows = zip(*(np.atleast_2d(values) for values in (ratings, predictions)), strict=True)
    taus = [stats.kendalltau(*row).statistic for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # no correlation with a constant: NaN
        return np.stack(
            [
                error,
                stats.pearsonr(ratings, predictions, axis=axis).statistic,
                stats.pearsonr(*ranks, axis=axis).statistic,
                np.reshape(taus, error.shape),
            ]
        )


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
