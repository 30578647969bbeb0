"""Whether the quality that was asked for is the quality that WhisQ hears: over levels, and along a curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from pipelines.evaluation.control import Measurement
from pipelines.evaluation.wanted import asked_curve, asked_score


def asked_and_heard(clips: Sequence[Measurement]) -> list[list[tuple[float, float]]]:
    """Asked and measured quality of the clips of each pair; where some are asked for by score, words are left out."""
    groups: dict[str, list[tuple[object, float]]] = {}
    for wanted, measured in clips:
        if asked_score(wanted.quality) is not None:
            groups.setdefault(wanted.pair, []).append((wanted.quality, measured["overall_quality"]))
    pairs = []
    for group in groups.values():
        by_score = [clip for clip in group if not isinstance(clip[0], str)]
        pairs.append([(asked_score(asked), heard) for asked, heard in (by_score if len(by_score) > 1 else group)])
    return pairs


def quality_responses(clips: Sequence[Measurement]) -> tuple[list[float], list[float]]:
    """How the measured quality of clips that differ in the asked one alone follows it.

    Returns:
        For each prompt and seed with at least two qualities the rank correlation of asked and measured quality, and how
        much the measured one rises for each point asked for.
    """
    correlations, slopes = [], []
    for group in asked_and_heard(clips):
        asked, heard = np.array(group).T
        if np.ptp(asked) > 0:
            slopes.append(float(np.polyfit(asked, heard, 1)[0]))
            correlations.append(float(spearmanr(asked, heard).statistic) if np.ptp(heard) > 0 else 0.0)
    return correlations, slopes


def mean_response(clips: Sequence[Measurement]) -> list[tuple[float, float, int]]:
    """Each quality that was asked for as one number, the mean of what was measured, and how many clips it is of."""
    by_score: dict[float, list[float]] = {}
    for group in asked_and_heard(clips):
        for asked, heard in group:
            by_score.setdefault(asked, []).append(heard)
    return [(asked, float(np.mean(by_score[asked])), len(by_score[asked])) for asked in sorted(by_score)]


def curve_followings(clips: Sequence[Measurement]) -> tuple[list[float], list[float], list[float]]:
    """How the measured quality along clips follows the curves that were asked for.

    Returns:
        For each clip with a curve the correlation of asked and measured scores, their mean difference without its sign,
        and the mean correlation with the curves of all other clips. A measured curve that does not move counts as 0.
    """
    curves = []
    for wanted, measured in clips:
        heard = np.array(measured["curve"])
        times = (np.arange(len(heard)) + 0.5) * measured["curve_hop_in_s"]
        asked = asked_curve(wanted.quality, times, measured["duration_in_s"])
        if asked is not None and len(heard) > 2 and np.ptp(asked) > 0:
            curves.append((wanted.quality, times, measured["duration_in_s"], asked, heard))
    own = [_correlation(asked, heard) for *_, asked, heard in curves]
    errors = [float(np.abs(asked - heard).mean()) for *_, asked, heard in curves]
    exchanged = []
    for place, (_, times, duration, _, heard) in enumerate(curves):
        others = [asked_curve(curve[0], times, duration) for other, curve in enumerate(curves) if other != place]
        if others:
            exchanged.append(float(np.mean([_correlation(asked, heard) for asked in others])))
    return own, errors, exchanged


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) < 1e-6:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
