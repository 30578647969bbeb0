"""Pictures of an evaluation: what stands beside real music, and how quality follows what was asked for."""

from __future__ import annotations

from pathlib import Path

from pipelines.evaluation.run import Evaluation
from qamdt.files import write_atomically


def draw_report(path: Path, evaluation: Evaluation) -> bool:
    """Draws what an evaluation found into a PNG file; needs matplotlib.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.figure import Figure  # here, because it takes half a second

    same = {name: values["same_size"] for name, values in evaluation.distribution.items() if "same_size" in values}
    shares = {name: row for name, row in evaluation.clips.get("generated", {}).items() if row.is_share}
    has_response = len(evaluation.response) > 1
    num_panels = len(same) + bool(shares) + has_response
    if not num_panels:
        return False
    figure = Figure(figsize=(3.2 * num_panels + 1.5 * bool(shares), 3.2), layout="constrained")
    widths = [1.0] * len(same) + [2.5] * bool(shares) + [1.3] * has_response
    panels = iter(figure.subplots(1, num_panels, squeeze=False, width_ratios=widths)[0])
    for name, values in same.items():
        systems = [system for system in ("real", "reconstructed", "generated") if system in values]
        axes = next(panels)
        heights, spreads = [values[system] for system in systems], [values[f"{system}_sd"] for system in systems]
        axes.bar(systems, heights, yerr=spreads, color=["0.7", "0.5", "C0"][-len(systems) :], capsize=3)
        axes.set_title(f"{name}, {values['clips']} clips")
        axes.tick_params(axis="x", rotation=30)
    if shares:
        _draw_shares(next(panels), evaluation, list(shares))
    if has_response:
        axes = next(panels)
        asked, heard, _ = zip(*evaluation.response, strict=True)
        axes.plot([1, 5], [1, 5], color="0.7", linewidth=1)
        axes.plot(asked, heard, marker="o")
        axes.set(title="quality", xlabel="asked for", ylabel="heard by WhisQ", xlim=(0.9, 5.1), ylim=(0.9, 5.1))
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return True


def _draw_shares(axes, evaluation: Evaluation, names: list[str]) -> None:
    """Draws shares with their intervals, what chance gives, and what rendered or real music reaches."""
    for place, name in enumerate(reversed(names)):
        row = evaluation.clips["generated"][name]
        low, high = row.figure.interval or (row.figure.value, row.figure.value)
        axes.plot([low, high], [place, place], color="C0", linewidth=2)
        axes.plot(row.figure.value, place, "o", color="C0", label="generated" if place == 0 else None)
        if row.floor is not None:
            axes.plot(
                row.floor, place, "|", color="C3", markersize=12, label="exchanged or chance" if place == 0 else None
            )
        if name in evaluation.clips.get("reference", {}):
            value = evaluation.clips["reference"][name].figure.value
            axes.plot(value, place, "D", color="0.5", markersize=5, label="reference" if place == 0 else None)
    axes.set(yticks=range(len(names)), yticklabels=list(reversed(names)), xlim=(-0.03, 1.03))
    axes.legend(fontsize="x-small", loc="best")
