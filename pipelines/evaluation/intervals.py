"""How sure a figure is: bootstrap over clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


NUM_RESAMPLES = 100
Z_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its 95 % interval; the interval is `None` where there are too few clips for one."""

    value: float
    interval: tuple[float, float] | None
    count: int


def mean_figure(values: Sequence[float], *, seed: int = 0, num_resamples: int = 2000) -> Figure:
    """Mean of one value a clip, with the percentile interval of resampled means.

    Args:
        values: The values; those that are not finite must be left out before.
        seed: Seed of the resampling.
        num_resamples: How many resamples.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"`values` must be finite and at least one, got {len(values)} values.")
    if len(values) < 2:
        return Figure(value=float(values.mean()), interval=None, count=len(values))
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=num_resamples)
    low, high = np.percentile(counts @ values / len(values), [2.5, 97.5])
    return Figure(value=float(values.mean()), interval=(float(low), float(high)), count=len(values))


def collection_figure(
    measure: Callable[..., float],
    *collections: np.ndarray,
    count: int,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Figure:
    """A figure of whole collections, with 1.96 standard deviations of its resamples to both sides.

    A resample holds clips twice, which shifts distances of collections upwards: so its spread is used and its place
    is not.

    Args:
        measure: Takes collections and returns the figure.
        collections: Arrays of one row a clip, each resampled by itself.
        count: Number of clips to report.
        seed: Seed of the resampling.
        num_resamples: How many resamples; no interval when 0.
    """
    value = measure(*collections)
    if not num_resamples:
        return Figure(value=value, interval=None, count=count)
    generator = np.random.default_rng(seed)
    resampled = [
        measure(*(rows[generator.integers(len(rows), size=len(rows))] for rows in collections))
        for _ in range(num_resamples)
    ]
    spread = Z_95 * float(np.std(resampled, ddof=1))
    return Figure(value=value, interval=(value - spread, value + spread), count=count)
