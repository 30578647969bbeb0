"""Keeps the clips whose scores are good enough, as rows of the score file or as lines of the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qamdt.files import encode_json_line, parse_json, replacing
from qamdt.keyed_rows import make_key
from qamdt.manifest import scan_manifest
from whisq.ratings import Fault
from whisq.scoring.rows import ScoreRows, is_of_this_sound
from whisq.scoring.stats import ScoreStats


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a clip must reach to be kept; a limit that is `None` asks for nothing.

    Args:
        min_overall_quality: Least quality, 1 to 5.
        min_text_alignment: Least text alignment, 1 to 5.
        omq_min_pct: Least percentile of quality: 10 drops the worst tenth.
        ta_min_pct: Least percentile of text alignment: 10 drops the tenth whose captions fit worst.
        drop_flags: Clips with one of these flags are dropped.
    """

    min_overall_quality: float | None = None
    min_text_alignment: float | None = None
    omq_min_pct: float | None = None
    ta_min_pct: float | None = None
    drop_flags: tuple[str, ...] = ()

    def find_fault(self, row: dict[str, Any], stats: ScoreStats) -> str | None:
        """Says why a row is dropped; `None` for one that is kept."""
        if row["status"] != "ok":
            return "without score"
        for flag in self.drop_flags:
            if flag in row["flags"]:
                return f"flag {flag}"
        quality, alignment = row["overall_quality"], row.get("text_alignment")
        if alignment is None and not (self.min_text_alignment is None and self.ta_min_pct is None):
            return "without text alignment"
        for what, value, least, least_pct, distribution in (
            ("quality", quality, self.min_overall_quality, self.omq_min_pct, stats.overall_quality),
            ("text alignment", alignment, self.min_text_alignment, self.ta_min_pct, stats.text_alignment),
        ):
            if least is not None and value < least:
                return f"{what} too low"
            if least_pct is not None and distribution.percentile(np.array([value]))[0] < least_pct:
                return f"{what} in too low a percentile"
        return None


def filter_scores(
    scores: Sequence[str | Path],
    out: str | Path,
    limits: Limits,
    stats: ScoreStats,
    *,
    manifest: str | Path | None = None,
) -> tuple[Counter, list[Fault]]:
    """Writes what is kept, in its order and unchanged.

    Args:
        scores: Files of `whisq score`.
        out: JSONL file to write.
        limits: What a clip must reach.
        stats: Statistics that percentiles refer to.
        manifest: Manifest whose lines are to be kept or dropped; the score rows are when `None`. A clip of it that has
            no score is dropped.

    Returns:
        How many clips were kept ("kept") and how many dropped for each reason, and the lines of the manifest that
        describe none.
    """
    if limits.ta_min_pct is not None and stats.text_alignment is None:
        raise ValueError("`ta_min_pct` needs text alignment, and no clip has any; score the clips with prompts.")
    out = Path(out)
    if manifest is not None and out.resolve().parent != Path(manifest).resolve().parent:
        raise ValueError(
            f"`out` must lie beside the manifest {str(manifest)!r}, whose paths are relative to its folder, "
            f"got {str(out)!r}."
        )
    counts, faults = Counter({"kept": 0}), []
    with replacing(out) as temporary, temporary.open("wb") as file:
        for line, reason in _decide(ScoreRows(scores), limits, stats, manifest, faults):
            counts[reason or "kept"] += 1
            if reason is None:
                file.write(line)
    return counts, faults


def holds_only_lines_of(path: Path, sources: Sequence[Path]) -> bool:
    """Whether everything in a JSONL file can be had again from others, as what `filter_scores` wrote before can."""
    known = {key for source in sources for key in _iterate_keys(source)}
    return all(key is not None and key in known for key in _iterate_keys(path))


def _iterate_keys(path: Path) -> Iterator[int | None]:
    """Yields what stands for each line of a JSONL file, `None` for one that is no JSON; nothing of a missing file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield make_key(parse_json(line))
            except ValueError:
                yield None


def _decide(
    rows: ScoreRows, limits: Limits, stats: ScoreStats, manifest: str | Path | None, faults: list[Fault]
) -> Iterator[tuple[bytes, str | None]]:
    """Yields the lines of the scores or of the manifest, each with the reason to drop it."""
    if manifest is None:
        for row in rows:
            yield encode_json_line(row), limits.find_fault(row, stats)
        return
    for line in scan_manifest(manifest, required=("path",)):
        if line.record is None:
            faults.append(Fault(file=Path(manifest).name, line=line.number, error=line.fault))
            continue
        row = rows.read(line.record.id)
        reason = "without score" if row is None else limits.find_fault(row, stats)
        if reason is None and not is_of_this_sound(row, manifest, line.record):
            reason = "sound has changed since it was scored"
        yield line.text if line.text.endswith(b"\n") else line.text + b"\n", reason
