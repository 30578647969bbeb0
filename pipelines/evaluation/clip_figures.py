"""Means over clips as one table: how well they follow their prompts, beside what chance and exchanged prompts give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.control import (
    HITS,
    Measurement,
    best_of_pairs,
    chord_matches,
    hit_values,
    instrument_summary,
    worst_and_best,
)
from pipelines.evaluation.intervals import Figure, mean_figure
from pipelines.evaluation.quality_control import curve_followings, quality_responses


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Args:
        figure: Mean over the clips.
        floor: What the same clips reach by chance or with their prompts exchanged; `None` where that means nothing.
        is_share: Whether it is a share, to be shown in per cent.
    """

    figure: Figure
    floor: float | None = None
    is_share: bool = False


def control_rows(clips: Sequence[Measurement], metrics: Sequence[str], *, seed: int = 0) -> dict[str, Row]:
    """The table of what is heard in the music against what was asked for.

    Args:
        clips: What was wanted and measured; of clips that differ in quality alone the best counts.
        metrics: Some of "tempo", "key", "chords" and "instrument".
        seed: Seed of the intervals.
    """
    rows: dict[str, Row] = {}
    best = best_of_pairs(clips)
    for name in HITS:
        if name.partition(",")[0] in metrics:
            hits, exchanged = hit_values(best, name)
            if hits:
                floor = float(np.mean(exchanged)) if exchanged else None
                rows[name] = Row(figure=mean_figure(hits, seed=seed), floor=floor, is_share=True)
    if "tempo" in metrics:
        for field, name in (("beat_contrast", "onsets follow the beat"), ("metre_contrast", "bars as asked for")):
            if values := [measured[field] > 0 for _, measured in best if field in measured]:
                rows[name] = Row(figure=mean_figure(values, seed=seed), floor=0.5, is_share=True)
    matches = chord_matches(best)
    if "chords" in metrics and len(matches):
        is_first = matches.argmax(axis=1) == 0
        rows["chords above all that are moved"] = Row(
            figure=mean_figure(is_first, seed=seed), floor=1 / 12, is_share=True
        )
        lead = matches[:, 0] - matches[:, 1:].mean(axis=1)
        rows["likeness of chords above moved ones"] = Row(figure=mean_figure(lead, seed=seed), floor=0.0)
    if "instrument" in metrics and (summary := instrument_summary(clips)):
        recognised = round(summary["recognised"] * summary["clips"])
        values = np.arange(summary["clips"]) < recognised
        rows["instrument by its timbre"] = Row(
            figure=mean_figure(values, seed=seed), floor=summary["chance"], is_share=True
        )
    return rows


def score_rows(clips: Sequence[Measurement], metrics: Sequence[str], *, seed: int = 0) -> dict[str, Row]:
    """The table of what WhisQ says.

    Args:
        clips: What was wanted and measured.
        metrics: Some of "whisq", "quality" and "curve".
        seed: Seed of the intervals.
    """
    rows: dict[str, Row] = {}
    best = best_of_pairs(clips)
    if "whisq" in metrics:
        for field, name in (("overall_quality", "quality"), ("text_alignment", "alignment")):
            if values := [measured[field] for _, measured in best if measured[field] is not None]:
                rows[f"WhisQ {name}"] = Row(figure=mean_figure(values, seed=seed))
    if "quality" in metrics:
        correlations, slopes = quality_responses(clips)
        if correlations:
            rows["rank correlation of asked and heard quality"] = Row(
                figure=mean_figure(correlations, seed=seed), floor=0.0
            )
            rows["heard points for each point asked"] = Row(figure=mean_figure(slopes, seed=seed), floor=0.0)
        if ends := worst_and_best(clips):
            values = [low["overall_quality"] < high["overall_quality"] for low, high in ends]
            rows["best quality above worst"] = Row(figure=mean_figure(values, seed=seed), floor=0.5, is_share=True)
    if "curve" in metrics:
        own, errors, exchanged = curve_followings(clips)
        if own:
            floor = float(np.mean(exchanged)) if exchanged else None
            rows["correlation with the quality curve"] = Row(figure=mean_figure(own, seed=seed), floor=floor)
            rows["distance from the quality curve"] = Row(figure=mean_figure(errors, seed=seed))
    return rows


def clap_rows(audio: np.ndarray, texts: np.ndarray, names: Sequence[str], *, seed: int = 0) -> dict[str, Row]:
    """The table of CLAP's opinion: similarity of clips to their own prompts, and to all other ones.

    Args:
        audio: Embeddings of clips `(clips, size)`, of unit length.
        texts: Those of their prompts.
        names: The prompts; clips that share one are not exchanged with each other.
        seed: Seed of the intervals.
    """
    similarity = audio @ texts.T
    is_other = np.array(names)[:, None] != np.array(names)[None]
    own = np.diag(similarity)
    if not is_other.any():
        return {"CLAP score": Row(figure=mean_figure(own, seed=seed))}
    rows = {"CLAP score": Row(figure=mean_figure(own, seed=seed), floor=float(similarity[is_other].mean()))}
    above = [(own[i] > similarity[i][is_other[i]]).mean() for i in range(len(own)) if is_other[i].any()]
    rows["own prompt above another"] = Row(figure=mean_figure(above, seed=seed), floor=0.5, is_share=True)
    return rows
