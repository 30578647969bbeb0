"""Figures of predictions as JSON and as tables: for clips and systems, for both ratings, over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import numpy as np

from whisq.evaluation.metrics import FIGURES, Agreement, measure_agreement, measure_system_agreement
from whisq.ratings import Predictions, RatedClip


TARGETS = ("overall_quality", "text_alignment")
LEVELS = ("utterance", "system")
# Figures by level, by target: {"utterance": {"overall_quality": ...}, ...}; a target nobody rated is missing.
Measures = Mapping[str, Mapping[str, Agreement]]
Summary = Mapping[str, Mapping[str, Mapping[str, dict]]]


def measure_predictions(
    clips: Sequence[RatedClip],
    predictions: Predictions,
    *,
    system_ratings: Mapping[str, tuple[float, float]] | None = None,
    num_resamples: int = 0,
) -> Measures:
    """Compares predictions with ratings, clip by clip and system by system.

    Args:
        clips: The rated clips.
        predictions: What was predicted for them; NaN leaves a clip out.
        system_ratings: Published mean ratings of whole systems.
        num_resamples: Bootstrap resamples behind the intervals; none when 0.
    """
    measures: dict[str, dict[str, Agreement]] = {level: {} for level in LEVELS}
    for number, target in enumerate(TARGETS):
        values = getattr(predictions, target)
        rated = [i for i, c in enumerate(clips) if getattr(c, target) is not None and np.isfinite(values[i])]
        if not rated:
            continue
        ratings = [getattr(clips[i], target) for i in rated]
        systems = [clips[i].system for i in rated]
        measures["utterance"][target] = measure_agreement(ratings, values[rated], num_resamples=num_resamples)
        measures["system"][target] = measure_system_agreement(
            systems,
            ratings,
            values[rated],
            system_ratings={system: pair[number] for system, pair in (system_ratings or {}).items()},
            num_resamples=num_resamples,
        )
    return measures


def summarize(measures: Sequence[Measures]) -> Summary:
    """Returns mean and standard deviation of each figure over seeds; of a single measure its interval is kept."""
    summary: dict[str, dict[str, dict[str, dict]]] = {}
    for level in LEVELS:
        summary[level] = {}
        for target in measures[0][level]:
            agreements = [measure[level][target] for measure in measures]
            summary[level][target] = {figure: _summarize_figure(agreements, figure) for figure in FIGURES}
    return summary


def _summarize_figure(agreements: Sequence[Agreement], figure: str) -> dict:
    values = [getattr(agreement, figure) for agreement in agreements]
    if not all(map(math.isfinite, values)):
        return {
            "mean": None,
            "sd": None,
            "interval": None,
            "values": [v if math.isfinite(v) else None for v in values],
        }
    return {
        "mean": fmean(values),
        "sd": stdev(values) if len(values) > 1 else None,
        "interval": list(agreements[0].intervals[figure]) if len(values) == 1 and agreements[0].intervals else None,
        "values": values,
    }


def format_table(rows: Mapping[str, Summary], level: str) -> str:
    """Returns a Markdown table with a row per name and the figures of both ratings at one level."""
    heads = [f"{short} {figure.upper()}" for short in ("OMQ", "TA") for figure in FIGURES]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, summary in rows.items():
        cells = [_format_cell(summary[level].get(target, {}).get(f)) for target in TARGETS for f in FIGURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_tables(rows: Mapping[str, Summary]) -> str:
    """Returns the tables of both levels, each under its title."""
    titles = {"utterance": "Utterance level", "system": "System level"}
    return "\n\n".join(f"### {titles[level]}\n\n{format_table(rows, level)}" for level in LEVELS) + "\n"


def _format_cell(figure: dict | None) -> str:
    if figure is None or figure["mean"] is None:
        return "–"
    cell = f"{figure['mean']:.3f}"
    if figure["sd"] is not None:
        return f"{cell} ± {figure['sd']:.3f}"
    if figure["interval"] is not None:
        return f"{cell} [{figure['interval'][0]:.2f}, {figure['interval'][1]:.2f}]"
    return cell
