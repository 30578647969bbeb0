"""An evaluation as JSON for programs and as Markdown for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pipelines.evaluation.clip_figures import Row
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.run import Evaluation


MAX_FAULTS_SHOWN = 20


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Returns everything that was measured as JSON can hold it, with null for what is not finite."""
    return _plain(asdict(evaluation))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return _plain(asdict(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def format_report(evaluation: Evaluation) -> str:
    """Returns the report as Markdown."""
    lines = ["# Evaluation", "", *_facts(evaluation), *_distribution(evaluation.distribution)]
    lines += [*_clips(evaluation.clips), *_response(evaluation), *_memorising(evaluation.memorising)]
    lines += [*_not_measured(evaluation), *_faults(evaluation)]
    return "\n".join(lines).rstrip() + "\n"


def _facts(evaluation: Evaluation) -> list[str]:
    lines = ["| | | clips |", "|---|---|---|"]
    for name, facts in evaluation.collections.items():
        lines.append(f"| {name} | `{facts['place']}` | {facts['clips']} |")
    lines += [f"| {name} | `{model}` | |" for name, model in evaluation.models.items()]
    return [*lines, "", "Intervals hold 95 % of bootstrap resamples over clips.", ""]


def _distribution(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not figures:
        return []
    has_ceiling = any("reconstructed" in values.get("same_size", {}) for values in figures.values())
    columns = ["", "clips, reference", "figure", "same size: generated", "same size: real"]
    columns += ["same size: after the autoencoder"] if has_ceiling else []
    lines = ["## Collections", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, values in figures.items():
        figure: Figure = values["figure"]
        same = values.get("same_size", {})
        real = same.get("real", values.get("real"))
        cells = [name, f"{figure.count}, {values.get('reference_clips', 0)}", _figure(figure)]
        cells += [_number(same.get("generated")), _number(real)]
        cells += [_number(same.get("reconstructed"))] if has_ceiling else []
        lines.append(f"| {' | '.join(cells)} |")
    sizes = [values["same_size"] for values in figures.values() if "same_size" in values]
    if sizes:
        size = sizes[0]
        lines += [
            "",
            f"Same size: {size['clips']} clips, generated or real, against {size['rest']} other real ones, mean of "
            f"{size['draws']} draws. The first figure takes all clips.",
        ]
    if (exchanged := figures.get("KL", {}).get("exchanged")) is not None:
        lines += ["", f"KL with the reference clips exchanged: {exchanged:.3f}."]
    return [*lines, ""]


def _clips(tables: Mapping[str, Mapping[str, Row]]) -> list[str]:
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    if not names:
        return []
    systems = [name for name in ("generated", "reconstructed", "reference") if name in tables]
    titles = {"reconstructed": "reference after the autoencoder"}
    heads = ["", "generated", "exchanged or chance"] if "generated" in systems else [""]
    heads += [titles.get(name, name) for name in systems if name != "generated"]
    lines = ["## Clips", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in names:
        cells = [name]
        for system in systems:
            row = tables[system].get(name)
            cells.append("" if row is None else f"{_figure(row.figure, row.is_share)}, {row.figure.count} clips")
            if system == "generated":
                cells.append("" if row is None else _number(row.floor, row.is_share))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _response(evaluation: Evaluation) -> list[str]:
    if len(evaluation.response) < 2:
        return []
    lines = ["## Quality asked for and heard", "", "| asked | heard by WhisQ | clips |", "|---|---|---|"]
    lines += [f"| {asked:g} | {heard:.2f} | {count} |" for asked, heard, count in evaluation.response]
    return [*lines, ""]


def _memorising(report: Mapping[str, Any]) -> list[str]:
    if not report:
        return []
    lines = [
        "## Memory of the training clips",
        "",
        f"Similarity to the nearest of {report['training_clips']} training clips: {_figure(report['figure'])} over "
        f"{report['figure'].count} generated clips.",
    ]
    if "held_out" in report:
        held_out = report["held_out"]
        lines[-1] += (
            f" Of {held_out['clips']} reference clips: {held_out['mean']:.3f}; beyond their 99th percentile, "
            f"{report['limit']:.3f}, lie {_figure(report['beyond_held_out_99'], True)} of the generated clips."
        )
    lines += ["", "| generated | nearest training clip | similarity |", "|---|---|---|"]
    lines += [f"| {own} | {theirs} | {similarity:.3f} |" for own, theirs, similarity in report["most_similar"]]
    return [*lines, ""]


def _not_measured(evaluation: Evaluation) -> list[str]:
    if not evaluation.not_measured:
        return []
    lines = [f"- {name}: {reason}." for name, reason in evaluation.not_measured.items()]
    return ["## Not measured", "", *lines, ""]


def _faults(evaluation: Evaluation) -> list[str]:
    if not evaluation.faults:
        return []
    lines = [f"- {fault['collection']}, {fault['name']}: {fault['reason']}" for fault in evaluation.faults]
    more = len(lines) - MAX_FAULTS_SHOWN
    rest = [f"- and {more} more, in the JSON file"] if more > 0 else []
    return [f"## Left out: {len(lines)}", "", *lines[:MAX_FAULTS_SHOWN], *rest, ""]


def _figure(figure: Figure, is_share: bool = False) -> str:
    text = _number(figure.value, is_share)
    if figure.interval is None:
        return text
    low, high = (_number(end, is_share) for end in figure.interval)
    return f"{text} [{low}, {high}]"


def _number(value: float | None, is_share: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.0%}" if is_share else f"{value:.3f}"
