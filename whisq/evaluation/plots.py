"""Pictures of an evaluation: predictions over ratings, and how far predictions can be taken at their word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qamdt.quality import MAX_SCORE, MIN_SCORE


if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_BINS = 8


def plot_scatter(path: Path, pairs: dict[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Draws predictions over ratings.

    Args:
        path: PNG file to write.
        pairs: Ratings and predictions, by the title of their panel.
    """
    figure = _new_figure(len(pairs))
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (title, (ratings, predictions)) in zip(panels, pairs.items(), strict=True):
        axes.plot([MIN_SCORE, MAX_SCORE], [MIN_SCORE, MAX_SCORE], color="0.7", linewidth=1)
        axes.scatter(ratings, predictions, s=10, alpha=0.4, edgecolors="none")
        _label(axes, title, "mean rating", "prediction")
    figure.savefig(path, dpi=120)


def plot_calibration(path: Path, pairs: dict[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Draws the mean rating of clips with like predictions, with the spread of the mean.

    Args:
        path: PNG file to write.
        pairs: Ratings and predictions, by the title of their panel.
    """
    figure = _new_figure(len(pairs))
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (title, (ratings, predictions)) in zip(panels, pairs.items(), strict=True):
        centers, means, errors = calibration_curve(ratings, predictions)
        axes.plot([MIN_SCORE, MAX_SCORE], [MIN_SCORE, MAX_SCORE], color="0.7", linewidth=1)
        axes.errorbar(centers, means, yerr=errors, marker="o", markersize=4, capsize=2)
        _label(axes, title, "prediction", "mean rating")
    figure.savefig(path, dpi=120)


def _new_figure(num_panels: int) -> Figure:
    try:
        from matplotlib.figure import Figure  # here, because it takes half a second and only evaluation draws
    except ImportError as error:
        raise ImportError("plots need matplotlib; install it with `pip install 'qamdt[demo]'`.") from error
    return Figure(figsize=(4.6 * num_panels, 5.0), layout="constrained")


def calibration_curve(
    ratings: Sequence[float], predictions: Sequence[float], num_bins: int = NUM_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups clips by their predictions, each group about as large as the others.

    Returns:
        For each group the mean prediction, the mean rating, and the standard error of the latter.
    """
    ratings, predictions = np.asarray(ratings, dtype=float), np.asarray(predictions, dtype=float)
    groups = np.array_split(np.argsort(predictions, kind="stable"), min(num_bins, len(predictions)))
    centers = np.array([predictions[group].mean() for group in groups])
    means = np.array([ratings[group].mean() for group in groups])
    errors = np.array([ratings[g].std(ddof=1) / np.sqrt(len(g)) if len(g) > 1 else 0.0 for g in groups])
    return centers, means, errors


def _label(axes, title: str, x_label: str, y_label: str) -> None:
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xlim=(0.9, 5.1), ylim=(0.9, 5.1), aspect="equal")
