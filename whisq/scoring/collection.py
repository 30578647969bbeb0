"""Scores whole collections: a JSONL file with a row for every clip, by one process or by many.

The work is cut into groups of clips that are alike in length (`whisq.scoring.plan`). A group's rows are appended when all
its clips are scored. So a run may be killed at any moment:
the same command again, with as many processes as you like, does what is missing and leaves the same file that an
unbroken run leaves. A clip whose sound file, prompt or anything else that its row depends on has changed is scored
again. A clip that cannot be scored gets a row that says why.

Several processes (`accelerate launch -m whisq.cli score …`, `torchrun`) or jobs (`--shard i/n`) write a part file each,
beside the output, of neighbouring groups; the last step merges them into it.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from qamdt.cpu_memory import return_freed_memory
from qamdt.files import printable
from qamdt.keyed_rows import FAILED, KeyedRows, file_identity, make_key
from whisq.scorer import ClipScore, WhisQScorer
from whisq.scoring.clip_table import Clip, ClipTable
from whisq.scoring.plan import count_windows, cut_evenly, load_windows, plan_groups
from whisq.scoring.window_reader import WindowRequest
from whisq.windows import BATCH_IN_S, Window


LOG_INTERVAL_IN_S = 60.0
_OVERHEAD_IN_S = 1.0  # of audio, which opening a file is worth


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
    shard: tuple[int, int] = (0, 1),
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
        shard: Which part of the work this process does, as `(number from 0, how many)`.

    Returns:
        How many clips of the share were "kept", scored "again" because something has changed, and are "new".
    """
    clips = ClipTable.of(clips)
    groups = plan_groups(clips, batch_seconds)
    groups = groups.cut(cut_evenly(groups.sums(clips.lengths_in_s + _OVERHEAD_IN_S), shard))
    redone = {None, FAILED} if retry_errors else {None}
    is_missing = np.zeros(len(clips), bool)
    for index in groups.order:
        is_missing[index] = rows.status(int(keys[index])) in redone
    is_new = is_missing.copy()
    if is_missing.any():
        is_new &= ~np.isin(clips.ids, rows.list_history()[0])
    # A group with a new clip is scored as a whole, as an unbroken run does it; of others what has changed.
    is_whole = np.zeros(len(clips), bool)
    is_whole[groups.order] = np.repeat(groups.sums(is_new) > 0, np.diff(np.append(0, groups.ends)))
    heard = groups.keep(is_missing | is_whole)
    identities = _identify_files(clips, is_missing)  # before they are read
    loaded = load_windows(clips, heard, batch_seconds, num_workers)
    # Windows are counted, not clips, so that a clip of hours says how far it is.
    num_windows = sum(map(count_windows, clips.lengths_in_s[heard.order]))
    with progress_bar(num_windows, is_hidden=shard[0] > 0) as bar:
        for group in heard:
            scores = score_group(clips, group, loaded, scorer, on_progress=bar.update)
            for index in group:
                if is_missing[index]:
                    file = identities[index].tolist() if identities[index, 0] >= 0 else None
                    rows.append(make_row(clips[index], int(keys[index]), file, scores[index], scorer))
    num_missing, num_new = int(is_missing.sum()), int(is_new.sum())
    return Counter(kept=len(groups.order) - num_missing, again=num_missing - num_new, new=num_new)


def progress_bar(num_windows: int, *, is_hidden: bool) -> tqdm:
    """A bar of the windows scored; in a log, where it cannot move, a line a minute."""
    interval_in_s = 0 if sys.stderr.isatty() else LOG_INTERVAL_IN_S
    return tqdm(
        total=num_windows,
        desc="scoring",
        unit="window",
        disable=is_hidden,
        delay=interval_in_s,
        mininterval=interval_in_s or 0.1,
        maxinterval=math.inf,
    )


def _identify_files(clips: ClipTable, is_wanted: np.ndarray) -> np.ndarray:
    """Returns `identify_file` of some clips, `(clips, 2)`; -1 where there is none."""
    identities = np.full((len(clips), 2), -1, np.int64)
    for index in np.flatnonzero(is_wanted):
        identities[index] = identify_file(clips[index]) or (-1, -1)
    return identities


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
    num_missing = sum(count_windows(clips[index].duration_in_s or 0.0) for index in group)
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
