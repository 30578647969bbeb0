"""What the answers of a listening test say: means with intervals, win rates, agreement of the listeners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pipelines.evaluation.intervals import Figure
from pipelines.listening.stimuli import ANCHORS, HIDDEN_REFERENCE
from qamdt.files import read_json


RANGES = {"quality": (1, 5), "relevance": (1, 5), "score": (0, 100)}
SCALES = {"mos": ("quality", "relevance"), "mushra": ("score",), "abx": ()}
NUM_RESAMPLES = 2000
# ITU-R BS.1534: who gives the hidden reference less than 90 in more than 15 % of the trials did not hear it.
REFERENCE_SCORE, REFERENCE_SHARE = 90, 0.15


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one listener said.

    Args:
        listener: Name or code.
        rows: The answers, as the page saves them.
    """

    listener: str
    rows: list[dict[str, Any]]


def read_answers(paths: Iterable[Path], key: Mapping[str, Any]) -> tuple[list[Answers], list[str]]:
    """Reads files of answers.

    Returns:
        The answers of each listener, and what is wrong with files and rows; those are left out.
    """
    found: dict[str, Answers] = {}
    faults = []
    for path in paths:
        try:
            values = read_json(Path(path))
            listener, rows = values["listener"], values["answers"]
            if values["test"] != key["id"]:
                raise ValueError("the answers belong to another test")
            if listener in found:
                raise ValueError(f"the listener {listener!r} has answered in another file")
        except (OSError, ValueError, KeyError, TypeError) as error:
            faults.append(f"{path}: {error if not isinstance(error, KeyError) else f'it has no {error}'}")
            continue
        good = []
        for number, row in enumerate(rows, start=1):
            if (fault := _find_fault(row, key)) is None:
                good.append(row)
            else:
                faults.append(f"{path}, answer {number}: {fault}")
        if missing := len(key["trials"]) - len({row["trial"] for row in good}):
            faults.append(f"{path}: {missing} of {len(key['trials'])} trials have no answer; the others count")
        found[listener] = Answers(listener=listener, rows=good)
    return list(found.values()), faults


def _find_fault(row: Any, key: Mapping[str, Any]) -> str | None:
    """What is wrong with an answer."""
    if not isinstance(row, dict) or row.get("trial") not in key["trials"]:
        return f"no such trial: {row!r}"
    if key["kind"] == "abx":
        return None if row.get("x") in ("A", "B") else f"`x` must be A or B, got {row.get('x')!r}"
    if row.get("clip") not in key["trials"][row["trial"]]:
        return f"no such sound in the trial: {row.get('clip')!r}"
    for name in SCALES[key["kind"]]:
        low, high = RANGES[name]
        value = row.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and low <= value <= high) and not (name == "relevance" and value is None):
            return f"`{name}` must be a number from {low} to {high}, got {value!r}"
    return None


def analyse(answers: Sequence[Answers], key: Mapping[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """Draws the figures of a test from its answers.

    Raises:
        ValueError: Nobody answered.
    """
    if not any(some.rows for some in answers):
        raise ValueError("there are no answers to analyse.")
    report: dict[str, Any] = {"kind": key["kind"], "listeners": len(answers)}
    if key["kind"] == "abx":
        return report | {"abx": _count_right(answers, key)}
    for scale in SCALES[key["kind"]]:
        table = ratings_table(answers, key, scale)
        if np.isfinite(table).any():
            report[scale] = _describe_scale(table, key, seed)
    if key["kind"] == "mushra":
        report["missed_reference"] = _who_missed_the_reference(answers, key)
    return report


def ratings_table(answers: Sequence[Answers], key: Mapping[str, Any], scale: str) -> np.ndarray:
    """The ratings `(listeners, systems, items)`, NaN where there is none, in the order of `systems` and `items`."""
    places = {name: place for place, name in enumerate(systems(key))}
    items = {name: place for place, name in enumerate(dict.fromkeys(clip["item"] for clip in key["clips"].values()))}
    table = np.full((len(answers), len(places), len(items)), np.nan)
    for listener, some in enumerate(answers):
        for row in some.rows:
            clip = key["clips"][row["clip"]]
            if row[scale] is not None:
                table[listener, places[clip["system"]], items[clip["item"]]] = row[scale]
    return table


def systems(key: Mapping[str, Any]) -> list[str]:
    """The systems of a test: those compared, then the hidden reference and the anchors."""
    names = sorted({clip["system"] for clip in key["clips"].values()})
    return sorted(names, key=lambda name: (name in ANCHORS, name == HIDDEN_REFERENCE))


def _describe_scale(table: np.ndarray, key: Mapping[str, Any], seed: int) -> dict[str, Any]:
    names = systems(key)
    means = {name: mean_rating(table[:, place], seed=seed) for place, name in enumerate(names)}
    wins = {
        f"{first} above {second}": win_rate(table[:, names.index(first)], table[:, names.index(second)])
        for first, second in permutations(names, 2)
    }
    return {"means": means, "win_rates": wins, "alpha": agreement(table.reshape(len(table), -1))}


def mean_rating(ratings: np.ndarray, *, seed: int = 0) -> Figure:
    """Mean of ratings `(listeners, items)`, with the percentiles of resampling listeners and items alike."""
    is_rated = np.isfinite(ratings)
    values = np.where(is_rated, ratings, 0.0)
    if not is_rated.any():
        return Figure(value=np.nan, interval=None, count=0)
    value = float(values.sum() / is_rated.sum())
    if is_rated.sum() < 2:
        return Figure(value=value, interval=None, count=1)
    generator = np.random.default_rng(seed)
    weights = [
        generator.multinomial(size, np.full(size, 1 / size), size=NUM_RESAMPLES).astype(float)
        for size in ratings.shape
    ]
    sums = np.einsum("rl,li,ri->r", weights[0], values, weights[1])
    counts = np.einsum("rl,li,ri->r", weights[0], is_rated.astype(float), weights[1])
    low, high = np.percentile(sums[counts > 0] / counts[counts > 0], [2.5, 97.5])
    return Figure(value=value, interval=(float(low), float(high)), count=int(is_rated.sum()))


def win_rate(first: np.ndarray, second: np.ndarray) -> float | None:
    """How often listeners rate the one above the other for the same item; a tie is half a win."""
    wins = np.sign(first - second)[np.isfinite(first) & np.isfinite(second)]
    return float((wins + 1).mean() / 2) if len(wins) else None


def agreement(ratings: np.ndarray) -> float | None:
    """Krippendorff's alpha of ratings `(listeners, sounds)` as intervals: 1 is full agreement, 0 is chance."""
    is_shared = np.isfinite(ratings).sum(axis=0) > 1
    shared = ratings[:, is_shared]
    if not is_shared.any() or np.nanmin(shared) == np.nanmax(shared):
        return None
    try:
        import krippendorff
    except ImportError as error:
        raise ImportError("the agreement of listeners needs `pip install 'qamdt[evaluate]'`.") from error
    return float(krippendorff.alpha(reliability_data=shared, level_of_measurement="interval"))


def _who_missed_the_reference(answers: Sequence[Answers], key: Mapping[str, Any]) -> list[str]:
    missed = []
    for some in answers:
        scores = [row["score"] for row in some.rows if key["clips"][row["clip"]]["system"] == HIDDEN_REFERENCE]
        if scores and np.mean(np.array(scores) < REFERENCE_SCORE) > REFERENCE_SHARE:
            missed.append(some.listener)
    return missed


def _count_right(answers: Sequence[Answers], key: Mapping[str, Any]) -> dict[str, Any]:
    """How often X was told; `p_value` is of guessing."""
    right = [row["x"] == key["answers"][row["trial"]] for some in answers for row in some.rows]
    test = binomtest(sum(right), len(right), alternative="greater")
    interval = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    return {
        "right": sum(right),
        "trials": len(right),
        "share": sum(right) / len(right),
        "interval": [interval.low, interval.high],
        "p_value": test.pvalue,
    }


def format_analysis(report: Mapping[str, Any]) -> str:
    """Returns the figures as Markdown."""
    lines = [f"{report['listeners']} listeners."]
    for scale in ("quality", "relevance", "score"):
        if scale not in report:
            continue
        values = report[scale]
        lines += ["", f"| {scale} | mean | ratings |", "|---|---|---|"]
        for name, figure in values["means"].items():
            ends = "" if figure.interval is None else f" [{figure.interval[0]:.2f}, {figure.interval[1]:.2f}]"
            lines.append(f"| {name} | {figure.value:.2f}{ends} | {figure.count} |")
        lines += ["", *(f"{name}: {rate:.0%}" for name, rate in values["win_rates"].items() if rate is not None)]
        alpha = "not known from one listener" if values["alpha"] is None else f"{values['alpha']:.2f}"
        lines += ["", f"Agreement of the listeners (Krippendorff's alpha): {alpha}."]
    if "abx" in report:
        abx = report["abx"]
        low, high = abx["interval"]
        lines.append(
            f"X was told in {abx['right']} of {abx['trials']} trials, {abx['share']:.0%} [{low:.0%}, {high:.0%}], "
            f"p = {abx['p_value']:.2g} against guessing."
        )
    if report.get("missed_reference"):
        lines += ["", f"Did not hear the hidden reference: {', '.join(report['missed_reference'])}."]
    return "\n".join(lines) + "\n"
