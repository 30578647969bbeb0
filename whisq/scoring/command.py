"""What `whisq score` does: finds the clips, shares them out to the processes, and reports."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from qamdt.outputs import check_output
from whisq.ratings import Fault
from whisq.scorer import WhisQScorer
from whisq.scoring.clip_table import ClipTable
from whisq.scoring.clips import list_clips, probe_durations
from whisq.scoring.collection import append_rows, row_key
from whisq.scoring.plan import scoring_order
from whisq.scoring.rows import (
    FINISHED,
    check_settings,
    describe_job,
    list_errors,
    merge_rows,
    note_settings,
    open_keyed_rows,
    settings_path,
)


NUM_LISTED_ERRORS = 20


def score(arguments: argparse.Namespace) -> int:
    """Runs the command with the parsed arguments and returns its exit status."""
    out, processes = arguments.out, find_processes()
    if arguments.shard is not None and processes is not None:
        raise argparse.ArgumentTypeError(
            "--shard is for jobs of one process; the processes of a launcher share by themselves"
        )
    is_main = processes is None or processes.is_main_process
    clips, faults = list_clips(arguments.inputs, prompts=arguments.prompts)
    for path in (out, settings_path(out)):
        # Whether what is there is ours, the readers of rows and settings say.
        check_output(path, inputs=[*arguments.inputs, arguments.prompts], is_ours=lambda path: True)
    clips = probe_durations(clips)
    scorer = WhisQScorer.from_pretrained(
        arguments.model, revision=arguments.revision, device=arguments.device or choose_device(processes)
    )
    settings = scorer.describe(reads_prompts=any(clip.has_words for clip in clips))
    keys = np.fromiter((row_key(clip, settings) for clip in clips), np.uint64, len(clips))
    out.parent.mkdir(parents=True, exist_ok=True)
    noted = check_settings(out, settings)
    shard = arguments.shard if processes is None else (processes.process_index, processes.num_processes)
    with ExitStack() as stack:
        rows = None if arguments.shard is not None else open_keyed_rows(out)
        if is_main and rows is not None:
            stack.enter_context(rows)  # keeps other jobs away until all parts are merged
            note_settings(out, noted)
        part = rows if shard is None else stack.enter_context(open_keyed_rows(out, shard))
        if arguments.shard is not None:
            note_settings(part.path, noted)
        counts = append_rows(
            part,
            clips,
            keys,
            scorer,
            batch_seconds=arguments.batch_seconds,
            num_workers=arguments.num_workers,
            retry_errors=arguments.retry_errors,
            shard=shard or (0, 1),
        )
        if arguments.shard is not None:
            note_settings(part.path, noted | {FINISHED: describe_job(keys)})
            print(f"When all {shard[1]} shards are done: python -m data_prep.merge_shards {out}")
            return _report(part.path, sum(counts.values()), clips, faults, counts)
        if processes is not None:
            part.close()
            counts = sum(gather_object([counts]), Counter())  # of all processes, once the last is done
        if is_main:
            order = scoring_order(clips)
            merge_rows(rows, clips.ids[order], keys[order])
    if not is_main:
        return 0
    return _report(out, len(clips), clips, faults, counts)


def _report(out: Path, num_clips: int, clips: ClipTable, faults: list[Fault], counts: Counter) -> int:
    """Says what was done and what could not be of some of the clips, and returns the exit status."""
    errors = list_errors(out, clips.ids)
    print(
        f"{num_clips - len(errors)} of {num_clips} clips have scores in {out}: {counts['kept']} kept, "
        f"{counts['again']} scored again, {counts['new']} new."
    )
    for clip_id, error in errors[:NUM_LISTED_ERRORS]:
        print(f"  {clip_id}: {error}", file=sys.stderr)
    if errors:
        print(f"{len(errors)} clips could not be scored; `status` is error in their rows.", file=sys.stderr)
    cut = np.flatnonzero(clips.missing_in_s)
    for index in cut[:NUM_LISTED_ERRORS]:
        print(f"  {clips[index].id}: its file ends before the clip should", file=sys.stderr)
    if len(cut):
        print(f"{len(cut)} clips are cut off; `flags` names truncated in their rows.", file=sys.stderr)
    for fault in faults[:NUM_LISTED_ERRORS]:
        print(f"  {fault}", file=sys.stderr)
    if faults:
        print(f"{len(faults)} lines describe no clip and were passed over.", file=sys.stderr)
    return int(bool(errors or faults))


def find_processes() -> PartialState | None:
    """The processes that `accelerate launch` or `torchrun` started; `None` for a process on its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    # The first to finish waits for the last; without `cpu=True`, processes without a GPU do not find each other.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))


def choose_device(processes: PartialState | None) -> torch.device:
    """The GPU of this process, or the CPU where there is none."""
    if processes is not None:
        return processes.device
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
