"""Scores whole collections: a JSONL file with a row for every clip, by one process or by many.

The work is cut into groups of clips that are alike in length, the same ones whatever is done already and however many
processes there are. A group's rows are appended when all its clips are scored. So a run may be killed at any moment:
the same command again, with as many processes as you like, does what is missing and leaves the same file that an
unbroken run leaves. A clip that cannot be scored gets a row that says why.

Several processes (`accelerate launch -m whisq.cli score …`, `torchrun`) write a part file each, beside the output; the
last step merges them into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from whisq.clips import Clip
from whisq.score_files import check_settings, cut_torn_line, list_score_files, part_path, read_rows
from whisq.scorer import ClipScore, WhisQScorer
from whisq.windows import BATCH_IN_S, WINDOW_IN_S, Window, WindowReader, WindowRequest, cut_batches, cut_windows


def score_collection(
    clips: Sequence[Clip],
    scorer: WhisQScorer,
    out: str | Path,
    *,
    batch_seconds: float = BATCH_IN_S,
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> None:
    """Appends a row for every clip that `out` and its part files lack.

    Args:
        clips: All clips of the job, in every process, with their lengths (`probe_durations`).
        scorer: The scorer.
        out: JSONL file to write or complete.
        batch_seconds: How much audio is scored at once, padding included.
        num_workers: Processes that read and decode ahead; 0 reads in this one.
        process_index: Number of this process.
        num_processes: How many processes share the work. With more than one, `merge_parts` must follow.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_settings(out, scorer.describe())
    target = out if num_processes == 1 else part_path(out, process_index)
    if target.is_file():
        cut_torn_line(target)
    finished = {row["id"] for file in list_score_files(out) for row in read_rows(file)}

    groups = plan_groups(clips, batch_seconds)[process_index::num_processes]
    missing = [group for group in groups if any(clips[index].id not in finished for index in group)]
    batches = [batch for group in missing for batch in plan_batches(clips, group, batch_seconds)]
    loader = DataLoader(
        WindowReader(clips, batches),
        batch_size=None,
        collate_fn=_pass_on,
        num_workers=num_workers,
        # A fresh interpreter: forking a process that has used threads can hang.
        multiprocessing_context="spawn" if num_workers else None,
    )
    loaded = zip(batches, loader, strict=True)
    num_done = sum(len(group) for group in groups) - sum(len(group) for group in missing)
    with (
        target.open("a", encoding="utf-8") as file,
        tqdm(
            total=sum(map(len, groups)), initial=num_done, desc="scoring", unit="clip", disable=process_index > 0
        ) as bar,
    ):
        for group in missing:
            scores = score_group(clips, group, loaded, scorer)
            rows = [
                format_row(clips[index], scores[index], scorer) for index in group if clips[index].id not in finished
            ]
            file.write("".join(rows))
            file.flush()
            bar.update(len(group))


def scoring_order(clips: Sequence[Clip]) -> list[int]:
    """The order in which clips are scored: short ones first, so that clips of like length are padded little."""
    return sorted(range(len(clips)), key=lambda index: (_length(clips[index]), clips[index].id))


def plan_groups(clips: Sequence[Clip], batch_seconds: float) -> list[list[int]]:
    """Cuts the order into groups: clips of one window that fit into a batch, or one clip of several windows."""
    order = scoring_order(clips)
    num_short = sum(_length(clip) <= WINDOW_IN_S for clip in clips)
    short = cut_batches([_length(clips[index]) for index in order[:num_short]], batch_seconds)
    return [[order[place] for place in places] for places in short] + [[index] for index in order[num_short:]]


def plan_batches(clips: Sequence[Clip], group: Sequence[int], batch_seconds: float) -> list[list[WindowRequest]]:
    """Cuts the windows of a group's clips into batches."""
    requests = []
    for index in group:
        duration_in_s = clips[index].duration_in_s
        windows = [(0.0, None)] if duration_in_s is None else cut_windows(duration_in_s)
        requests += [WindowRequest(clip=index, start_in_s=start, duration_in_s=length) for start, length in windows]
    batches = cut_batches([request.duration_in_s or 0.0 for request in requests], batch_seconds)
    return [[requests[place] for place in places] for places in batches]


def score_group(
    clips: Sequence[Clip],
    group: Sequence[int],
    loaded: Iterator[tuple[list[WindowRequest], list[Window | str]]],
    scorer: WhisQScorer,
) -> dict[int, ClipScore | str]:
    """Scores the clips of a group from its batches, the next ones of `loaded`; a clip that cannot be read has an error."""
    num_missing = sum(len(cut_windows(clips[index].duration_in_s or 0.0)) for index in group)
    windows: dict[int, list[Window]] = {index: [] for index in group}
    window_scores: dict[int, list] = {index: [] for index in group}
    errors: dict[int, str] = {}
    while num_missing:
        requests, results = next(loaded)
        num_missing -= len(requests)
        heard = []
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, str):
                errors.setdefault(request.clip, result)
                continue
            if result.duration_in_s > 0 and result.is_finite:
                heard.append((request.clip, result))
            # Only the measurements are kept: the samples of a long clip need not fit into memory.
            windows[request.clip].append(replace(result, waveform=torch.empty(0)))
        if heard:
            scored = scorer.score_windows([window for _, window in heard], [clips[index].prompt for index, _ in heard])
            for (index, _), score in zip(heard, scored, strict=True):
                window_scores[index].append(score)
    return {
        index: errors[index]
        if index in errors
        else scorer.combine(windows[index], window_scores[index], clips[index].prompt)
        for index in group
    }


def format_row(clip: Clip, score: ClipScore | str, scorer: WhisQScorer) -> str:
    """Returns the line of a clip; `score` may be the reason why its file could not be read."""
    row: dict[str, Any] = {"id": clip.id, "path": str(clip.path), "source": clip.source, "prompt": clip.prompt}
    if isinstance(score, str):
        row |= {"status": "error", "error": score, "flags": ["unreadable"], "overall_quality": None}
    else:
        row |= {
            "status": "ok" if score.error is None else "error",
            "error": score.error,
            "flags": score.flags,
            "duration_in_s": round(score.duration_in_s, 3),
            "sampling_rate": score.sampling_rate,
            "overall_quality": None if score.overall_quality is None else round(score.overall_quality, 4),
            "text_alignment": None if score.text_alignment is None else round(score.text_alignment, 4),
            "frame_hop_in_s": score.frame_hop_in_s,
            "frame_overall_quality": [round(value, 3) for value in score.frame_overall_quality],
        }
    return json.dumps(row | {"scorer": scorer.name}, ensure_ascii=False) + "\n"


def _length(clip: Clip) -> float:
    return clip.duration_in_s or 0.0


def _pass_on(windows: list[Window | str]) -> list[Window | str]:
    """Keeps `DataLoader` from changing what was read."""
    return windows
