"""Scores whole collections: a JSONL file with a row for every clip, by one process or by many.

The work is cut into groups of clips that are alike in length, the same ones whatever is done already and however many
processes there are. A group's rows are appended when all its clips are scored. So a run may be killed at any moment:
the same command again, with as many processes as you like, does what is missing and leaves the same file that an
unbroken run leaves. A clip whose sound file, prompt or anything else that its row depends on has changed is scored
again. A clip that cannot be scored gets a row that says why.

Several processes (`accelerate launch -m whisq.cli score …`, `torchrun`) write a part file each, beside the output; the
last step merges them into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from qamdt.cpu_memory import return_freed_memory
from qamdt.files import printable
from qamdt.keyed_rows import FAILED, KeyedRows, file_identity, make_key
from whisq.scorer import ClipScore, WhisQScorer
from whisq.scoring.clips import Clip
from whisq.scoring.window_reader import WindowReader, WindowRequest
from whisq.windows import BATCH_IN_S, WINDOW_IN_S, Window, cut_batches, cut_windows


def row_key(clip: Clip, settings: Mapping[str, Any]) -> int:
    """Returns the key of a clip's row, which changes with whatever the row depends on.

    Args:
        clip: The clip.
        settings: What `WhisQScorer.describe` says.
    """
    file = identify_file(clip)
    if not clip.has_words:
        settings = {name: value for name, value in settings.items() if not name.startswith("text_encoder")}
    span = [clip.start_in_s, clip.duration_in_s]
    cut = ["cut"] if clip.missing_in_s else []
    return make_key(clip.id, clip.place, file, span, clip.source, clip.prompt, settings, *cut)


def append_rows(
    rows: KeyedRows,
    clips: Sequence[Clip],
    keys: Sequence[int],
    scorer: WhisQScorer,
    *,
    batch_seconds: float = BATCH_IN_S,
    num_workers: int = 0,
    retry_errors: bool = False,
    process_index: int = 0,
    num_processes: int = 1,
) -> Counter:
    """Appends a row for every clip of this process's share that has none.

    Args:
        rows: The rows of the job, those of other processes too; this process's are appended.
        clips: All clips of the job, in every process, with their lengths (`probe_durations`).
        keys: Their keys.
        scorer: The scorer.
        batch_seconds: How much audio is scored at once, padding included.
        num_workers: Processes that read and decode ahead; 0 reads in this one.
        retry_errors: Whether clips that could not be scored are tried again.
        process_index: Number of this process.
        num_processes: How many processes share the work.

    Returns:
        How many clips of the share were "kept", scored "again" because something has changed, and are "new".
    """
    groups = plan_groups(clips, batch_seconds)[process_index::num_processes]
    share = [index for group in groups for index in group]
    redone = {None, FAILED} if retry_errors else {None}
    missing = {index for index in share if rows.status(keys[index]) in redone}
    known = {row["id"] for row in rows.history()} if missing else set()
    new = {index for index in missing if clips[index].id not in known}
    # A group with a new clip is scored as a whole, as an unbroken run does it; of others what has changed.
    heard = [group if new & {*group} else [index for index in group if index in missing] for group in groups]
    heard = [group for group in heard if group]
    files = {index: identify_file(clips[index]) for index in missing}  # before they are read
    loaded = load_windows(clips, heard, batch_seconds, num_workers)
    # Windows are counted, not clips, so that a clip of hours says how far it is.
    num_windows = sum(count_windows(clips[index]) for group in heard for index in group)
    is_hidden = process_index > 0 or None
    with tqdm(total=num_windows, desc="scoring", unit="window", disable=is_hidden) as bar:
        for group in heard:
            scores = score_group(clips, group, loaded, scorer, on_progress=bar.update)
            for index in group:
                if index in missing:
                    rows.append(make_row(clips[index], keys[index], files[index], scores[index], scorer))
    return Counter(kept=len(share) - len(missing), again=len(missing - new), new=len(new))


def load_windows(
    clips: Sequence[Clip], groups: Sequence[Sequence[int]], batch_seconds: float, num_workers: int
) -> Iterator[tuple[list[WindowRequest], list[Window | str]]]:
    """Yields the batches of all groups, one after the other: what was asked for, and what was read."""
    batches = [batch for group in groups for batch in plan_batches(clips, group, batch_seconds)]
    loader = DataLoader(
        WindowReader(clips, batches),
        batch_size=None,
        collate_fn=_pass_on,
        num_workers=num_workers,
        # A fresh interpreter: forking a process that has used threads can hang.
        multiprocessing_context="spawn" if num_workers else None,
    )
    return zip(batches, loader, strict=True)


def scoring_order(clips: Sequence[Clip]) -> list[int]:
    """The order in which clips are scored: short ones first, so that clips of like length are padded little."""
    return sorted(range(len(clips)), key=lambda index: (_length(clips[index]), clips[index].id))


def plan_groups(clips: Sequence[Clip], batch_seconds: float) -> list[list[int]]:
    """Cuts the order into groups: clips of one window that fit into a batch, or one clip of several windows."""
    order = scoring_order(clips)
    num_short = sum(_length(clip) <= WINDOW_IN_S for clip in clips)
    short = cut_batches([_length(clips[index]) for index in order[:num_short]], batch_seconds)
    return [[order[place] for place in places] for places in short] + [[index] for index in order[num_short:]]


def count_windows(clip: Clip) -> int:
    """Returns how many windows a clip has."""
    return len(cut_windows(_length(clip)))


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
    *,
    on_progress: Callable[[int], object] = lambda num_windows: None,
) -> dict[int, ClipScore | str]:
    """Scores the clips of a group from its batches, the next ones of `loaded`; a clip that cannot be read has an error.

    `on_progress` is told after each batch how many windows it had.
    """
    num_missing = sum(count_windows(clips[index]) for index in group)
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
            if len(result.waveform) and result.is_finite:
                heard.append((request.clip, result))
            # Only the measurements are kept: the samples of a long clip need not fit into memory.
            windows[request.clip].append(replace(result, waveform=torch.empty(0)))
        if heard:
            scored = scorer.score_windows([window for _, window in heard], [clips[index].prompt for index, _ in heard])
            for (index, _), score in zip(heard, scored, strict=True):
                window_scores[index].append(score)
        on_progress(len(requests))
        return_freed_memory()
    scores: dict[int, ClipScore | str] = dict(errors)
    for index in windows.keys() - errors.keys():
        *some, last = windows[index]
        last = replace(last, missing_in_s=last.missing_in_s + clips[index].missing_in_s)
        scores[index] = scorer.combine([*some, last], window_scores[index], clips[index].prompt)
    return scores


def identify_file(clip: Clip) -> list[int] | None:
    """Returns by what the file of a clip is known to be the same; `None` where it is not there, as its row will say."""
    try:
        return file_identity(clip.path)
    except (OSError, ValueError):
        return None


def make_row(
    clip: Clip, key: int, file: list[int] | None, score: ClipScore | str, scorer: WhisQScorer
) -> dict[str, Any]:
    """Returns the row of a clip; `file` is its identity, and `score` may be why it could not be read."""
    row: dict[str, Any] = {
        "key": f"{key:016x}",
        "id": clip.id,
        "path": printable(str(clip.path)),
        "file": file,
        "start_in_s": clip.start_in_s,
        "source": clip.source,
        "prompt": clip.prompt,
    }
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
    return row | {"scorer": scorer.name}


def _length(clip: Clip) -> float:
    return clip.duration_in_s or 0.0


def _pass_on(windows: list[Window | str]) -> list[Window | str]:
    """Keeps `DataLoader` from changing what was read."""
    return windows
