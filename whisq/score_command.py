"""What `whisq score` does: finds the clips, shares them out to the processes, and reports."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta

import torch
from accelerate import PartialState

from whisq.clips import list_clips, probe_durations
from whisq.score_files import drop_errors, list_errors, merge_parts
from whisq.scorer import WhisQScorer
from whisq.scoring import score_collection, scoring_order


NUM_LISTED_ERRORS = 20


def score(arguments: argparse.Namespace) -> int:
    """Runs the command with the parsed arguments and returns its exit status."""
    processes = find_processes()
    is_main = processes is None or processes.is_main_process
    clips = probe_durations(list_clips(arguments.inputs, prompts=arguments.prompts))
    scorer = WhisQScorer.from_pretrained(
        arguments.model, revision=arguments.revision, device=arguments.device or choose_device(processes)
    )
    if arguments.retry_errors and is_main:
        drop_errors(arguments.out)
    if processes is not None:
        processes.wait_for_everyone()
    score_collection(
        clips,
        scorer,
        arguments.out,
        batch_seconds=arguments.batch_seconds,
        num_workers=arguments.num_workers,
        process_index=0 if processes is None else processes.process_index,
        num_processes=1 if processes is None else processes.num_processes,
    )
    if processes is not None:
        processes.wait_for_everyone()
    if not is_main:
        return 0
    merge_parts(arguments.out, [clips[index].id for index in scoring_order(clips)])
    errors = list_errors(arguments.out, {clip.id for clip in clips})
    print(f"{len(clips) - len(errors)} of {len(clips)} clips have scores in {arguments.out}.")
    for clip_id, error in errors[:NUM_LISTED_ERRORS]:
        print(f"  {clip_id}: {error}", file=sys.stderr)
    if errors:
        print(f"{len(errors)} clips could not be scored; `status` is error in their rows.", file=sys.stderr)
    return int(bool(errors))


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
