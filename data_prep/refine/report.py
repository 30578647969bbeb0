"""The report of a refinement: a Markdown file with plots that shows the captions before and after."""

from __future__ import annotations

import heapq
import html
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.refine.outcomes import ORIGINAL, Refinement
from qamdt.files import write_text


REPORT_NAME = "report.md"
SIMILARITY_PLOT, DROPPED_PLOT = "similarity.png", "dropped.png"
NUM_EXAMPLES = 6
MAX_EXAMPLE_CHARACTERS = 300
_MARKDOWN = re.compile(r"([\\`*_\[\]|~])")


@dataclass(kw_only=True)
class Summary:
    """What a report says of many clips; its size does not grow with their captions.

    Args:
        before: CLAP similarity of each clip's originals with the audio, their mean.
        after: CLAP similarity of each clip's refined caption, of the same clips.
        candidates: How many candidates each source gave.
        dropped: How many of them were dropped, by source and reason.
        failed_checks: How many answers failed each kind of check.
        num_clips: Number of clips.
        num_fallbacks: Number of clips whose caption is not the fuser's.
        num_without_originals: Number of clips that came without a usable caption.
        examples: A few clips, drawn by their names.
        fallbacks: A few of those that fell back, likewise.
    """

    before: array = field(default_factory=lambda: array("f"))
    after: array = field(default_factory=lambda: array("f"))
    candidates: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed_checks: Counter[str] = field(default_factory=Counter)
    num_clips: int = 0
    num_fallbacks: int = 0
    num_without_originals: int = 0
    examples: list = field(default_factory=list)
    fallbacks: list = field(default_factory=list)

    def add(self, refinement: Refinement) -> None:
        """Counts one clip."""
        alignment, fusion = refinement.alignment, refinement.fusion
        self.num_clips += 1
        self.num_fallbacks += fusion.fell_back
        self.candidates.update(candidate.source for candidate in (*alignment.kept, *alignment.dropped))
        self.dropped.update((candidate.source, candidate.reason) for candidate in alignment.dropped)
        self.failed_checks.update(_kind(check) for check in fusion.failed_checks)
        _draw(self.fallbacks if fusion.fell_back else self.examples, refinement)
        originals = original_similarities(refinement)
        if not originals:
            self.num_without_originals += 1
        elif fusion.similarity is not None:
            self.before.append(sum(originals) / len(originals))
            self.after.append(fusion.similarity)


def original_similarities(refinement: Refinement) -> list[float]:
    """Lists how similar to the audio the captions were that a clip came with."""
    candidates = (*refinement.alignment.kept, *refinement.alignment.dropped)
    return [c.similarity for c in candidates if c.source == ORIGINAL and c.similarity is not None]


def write_report(folder: str | Path, refinements: Iterable[Refinement], settings: Mapping[str, str]) -> Path:
    """Writes the report and its plots.

    Args:
        folder: Where to; made if it does not exist.
        refinements: The clips, read once.
        settings: What to name at the top: the models, thresholds and files.

    Returns:
        The path of the Markdown file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    for refinement in refinements:
        summary.add(refinement)
    has_plots = summary.num_clips > 0 and _write_plots(folder, summary)
    parts = [
        "# Caption refinement",
        _table(("setting", "value"), [(name, _escape(value)) for name, value in settings.items()]),
        _describe_clips(summary),
        "## Similarity with the audio",
        _describe_similarity(summary),
        f"![Similarity before and after]({SIMILARITY_PLOT})" if has_plots else "",
        "## Candidates",
        _describe_candidates(summary),
        f"![Dropped candidates]({DROPPED_PLOT})" if has_plots else "",
        "## Failed checks",
        _table(("check", "times"), summary.failed_checks.most_common()) or "None.",
        "## Examples",
        *(_describe_example(example) for *_, example in sorted(summary.examples, reverse=True)),
        "## Examples of clips that kept a caption of before",
        *(_describe_example(example) for *_, example in sorted(summary.fallbacks, reverse=True)),
    ]
    path = folder / REPORT_NAME
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def _draw(examples: list, refinement: Refinement) -> None:
    """Keeps the clips with the smallest checksums of their names: the same ones whatever the order."""
    entry = (-zlib.crc32(refinement.id.encode("utf-8", "replace")), refinement.id, refinement)
    if len(examples) < NUM_EXAMPLES:
        heapq.heappush(examples, entry)
    elif entry[:2] > examples[0][:2]:
        heapq.heapreplace(examples, entry)


def _kind(check: str) -> str:
    """Names the kind of a failed check, without the words and numbers of the clip."""
    return re.sub(r"\s+", " ", re.sub(r"'[^']*'|\"[^\"]*\"|-?\d[\d.]*%?", "…", check))


def _describe_clips(summary: Summary) -> str:
    fused = summary.num_clips - summary.num_fallbacks
    text = f"{summary.num_clips} clips: {fused} with a fused caption, {summary.num_fallbacks} that kept one of before."
    if summary.num_without_originals:
        text += f" {summary.num_without_originals} came without a usable caption."
    return text


def _describe_similarity(summary: Summary) -> str:
    if not summary.before:
        return "No clip has both an original and a refined caption."
    rows = []
    for name, values in (("original captions", summary.before), ("refined caption", summary.after)):
        low, median, high = np.quantile(values, (0.1, 0.5, 0.9))
        rows.append((name, f"{np.mean(values):.3f}", f"{low:.3f}", f"{median:.3f}", f"{high:.3f}"))
    gains = np.subtract(summary.after, summary.before)
    table = _table(("", "mean", "10 %", "median", "90 %"), rows)
    return (
        f"{table}\n\nIt rose in {np.mean(gains > 0):.0%} and fell in {np.mean(gains < 0):.0%} of {len(gains)} clips."
    )


def _describe_candidates(summary: Summary) -> str:
    reasons = sorted({reason for _, reason in summary.dropped})
    rows = []
    for source, given in summary.candidates.most_common():
        counts = [summary.dropped[source, reason] for reason in reasons]
        rows.append((_escape(source), given, given - sum(counts), *counts))
    return _table(("source", "given", "kept", *reasons), rows)


def _describe_example(refinement: Refinement) -> str:
    lines = [f"**{_escape(refinement.id)}**", ""]
    lines += [
        f"- kept ({c.similarity:.3f}, {_escape(c.source)}): {_escape(c.text)}" for c in refinement.alignment.kept
    ]
    lines += [
        f"- dropped ({_escape(c.source)}): {_escape(c.text)} — {_escape(c.detail)}"
        for c in refinement.alignment.dropped
    ]
    fusion = refinement.fusion
    similarity = "" if fusion.similarity is None else f" ({fusion.similarity:.3f})"
    lines.append(f"- **{'kept as it was' if fusion.fell_back else 'fused'}{similarity}: {_escape(fusion.caption)}**")
    lines += [f"- paraphrase: {_escape(text)}" for text in fusion.paraphrases]
    lines += [f"- failed check: {_escape(check)}" for check in fusion.failed_checks]
    return "\n".join(lines)


def _table(header: tuple, rows: Iterable[tuple]) -> str:
    rows = [" | ".join(map(str, row)) for row in rows]
    if not rows:
        return ""
    return "\n".join(f"| {row} |" for row in (" | ".join(header), " | ".join(["---"] * len(header)), *rows))


def _escape(text: str) -> str:
    """Shows the text of a stranger as it is: no markup of it takes effect."""
    text = " ".join(str(text).split())
    if len(text) > MAX_EXAMPLE_CHARACTERS:
        text = text[: MAX_EXAMPLE_CHARACTERS - 1] + "…"
    return _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False))


def _write_plots(folder: Path, summary: Summary) -> bool:
    """Writes the plots; returns `False`, with none written, where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    if summary.before:
        edges = np.histogram_bin_edges(np.concatenate([summary.before, summary.after]), bins=40)
        axes.hist(summary.before, edges, alpha=0.6, label="original captions", color="tab:gray")
        axes.hist(summary.after, edges, alpha=0.6, label="refined caption", color="tab:blue")
        axes.legend()
    axes.set(xlabel="CLAP similarity with the audio", ylabel="clips")
    figure.savefig(folder / SIMILARITY_PLOT, dpi=120)

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    sources = [source for source, _ in summary.candidates.most_common()]
    left = np.zeros(len(sources))
    reasons = sorted({reason for _, reason in summary.dropped})
    kept = [summary.candidates[s] - sum(summary.dropped[s, reason] for reason in reasons) for s in sources]
    for label, counts in [("kept", kept), *((r, [summary.dropped[s, r] for s in sources]) for r in reasons)]:
        axes.barh(sources, counts, left=left, label=label)
        left += counts
    axes.invert_yaxis()
    axes.set(xlabel="candidates")
    axes.legend()
    figure.savefig(folder / DROPPED_PLOT, dpi=120)
    return True
