"""Which clips are scored together, and in which order: planned in columns, for jobs of any size.

The work is cut into groups of clips that are alike in length, the same ones whatever is done already and however many
processes there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader

from whisq.scoring.clip_table import Clip, ClipTable
from whisq.scoring.window_reader import WindowReader, WindowRequest
from whisq.windows import WINDOW_IN_S, Window, cut_batches, cut_windows


@dataclass(frozen=True)
class Groups(Sequence):
    """Groups of clips, one after the other.

    Args:
        order: Numbers of the clips.
        ends: Where in `order` each group ends.
    """

    order: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> list[int]:
        if not 0 <= number < len(self):
            raise IndexError(f"there are {len(self)} groups, and none has the number {number}")
        return self.order[self.ends[number - 1] if number else 0 : self.ends[number]].tolist()

    def cut(self, wanted: slice) -> Groups:
        """Returns some neighbouring groups."""
        ends = self.ends[wanted]
        start = self.ends[wanted.start - 1] if wanted.start else 0
        return Groups(self.order[start : ends[-1]] if len(ends) else self.order[:0], ends - start)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Returns for each group the sum of the values of its clips, one of which each clip of the job has."""
        totals = np.append(0, np.cumsum(values[self.order]))
        return np.diff(totals[np.append(0, self.ends)])

    def keep(self, values: np.ndarray) -> Groups:
        """Leaves out the clips of the job whose value is false, and the groups that then are empty."""
        kept = values[self.order]
        ends = np.cumsum(kept)[self.ends - 1] if len(self.ends) else self.ends
        return Groups(self.order[kept], ends[np.diff(np.append(0, ends)) > 0])


def scoring_order(clips: Sequence[Clip]) -> np.ndarray:
    """The order in which clips are scored: short ones first, so that clips of like length are padded little."""
    clips = ClipTable.of(clips)
    return np.lexsort((clips.ids, clips.lengths_in_s))


def plan_groups(clips: Sequence[Clip], batch_seconds: float) -> Groups:
    """Cuts the order into groups: clips of one window that fit into a batch, or one clip of several windows."""
    clips = ClipTable.of(clips)
    order = scoring_order(clips)
    lengths_in_s = clips.lengths_in_s[order]
    num_short = int((lengths_in_s <= WINDOW_IN_S).sum())
    short = [batch.stop for batch in cut_batches(lengths_in_s[:num_short], batch_seconds)]
    return Groups(order, np.concatenate([np.array(short, np.int64), np.arange(num_short, len(order)) + 1]))


def cut_evenly(weights: np.ndarray, shard: tuple[int, int]) -> slice:
    """Returns which of a row of tasks a shard does: neighbours, whose weights are about the n-th part of all.

    The same for every shard, disjoint, and together everything: results one after the other are those of one process.
    """
    number, count = shard
    ends = np.cumsum(weights, dtype=np.float64)
    total = ends[-1] if len(ends) else 0.0
    middles = ends - np.asarray(weights) / 2
    first, last = np.searchsorted(middles, [total * number / count, total * (number + 1) / count])
    return slice(int(first), len(weights) if number + 1 == count else int(last))


def count_windows(length_in_s: float) -> int:
    """Returns how many windows a clip of some length has."""
    return len(cut_windows(length_in_s))


def plan_batches(clips: Sequence[Clip], group: Sequence[int], batch_seconds: float) -> list[list[WindowRequest]]:
    """Cuts the windows of a group's clips into batches."""
    requests = []
    for index in group:
        duration_in_s = clips[index].duration_in_s
        windows = [(0.0, None)] if duration_in_s is None else cut_windows(duration_in_s)
        requests += [WindowRequest(clip=index, start_in_s=start, duration_in_s=length) for start, length in windows]
    batches = cut_batches([request.duration_in_s or 0.0 for request in requests], batch_seconds)
    return [[requests[place] for place in places] for places in batches]


def load_windows(
    clips: Sequence[Clip], groups: Sequence[Sequence[int]], batch_seconds: float, num_workers: int
) -> Iterator[tuple[list[WindowRequest], list[Window | str]]]:
    """Yields the batches of all groups, one after the other: what was asked for, and what was read."""
    yield from DataLoader(
        WindowReader(clips),
        batch_sampler=(batch for group in groups for batch in plan_batches(clips, group, batch_seconds)),
        collate_fn=_pass_on,
        num_workers=num_workers,
        # A fresh interpreter: forking a process that has used threads can hang.
        multiprocessing_context="spawn" if num_workers else None,
    )


def _pass_on(windows: list[tuple[WindowRequest, Window | str]]) -> tuple[list[WindowRequest], list[Window | str]]:
    """Keeps `DataLoader` from changing what was read."""
    requests, read = zip(*windows, strict=True)
    return list(requests), list(read)
