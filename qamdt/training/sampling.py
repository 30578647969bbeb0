"""Which clips make the batches: epoch after epoch in fresh order, often-wanted clips more often, lengths kept apart.

Everything here follows from the run's seed and from how many draws were taken before, so ranks agree without talking and
a resumed run goes on where it stopped.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


Draw = tuple[int, int, int]  # epoch, clip, how often the epoch had that clip before


class EpochSampler(Sampler[list[Draw]]):
    """Yields batches of draws without end.

    The clips of each bucket (crops of one length) make one long row of draws: epoch after epoch, each in an order of its
    own. Each update takes the next `num_ranks * batch_size` draws of one bucket's row, and each rank its part of those.
    So no clip is lost or doubled, and one place per row is all that resuming needs.

    Args:
        buckets: The clips of each bucket.
        weights: How often each clip is drawn, relative to the others; alike when `None`. An epoch of a bucket has as many
            draws as clips, and each clip the rounded-up or rounded-down number of draws that its weight asks for.
        shards: The shard of each clip; only needed with a window.
        window_in_shards: How many shards are mixed at a time; all of them when `None`.
        batch_size: Draws per batch of one rank.
        seed: The run's seed.
        taken: Draws that were taken from each bucket before, by all ranks together; none when `None`.
        rank: This process.
        num_ranks: Number of processes.
    """

    def __init__(
        self,
        buckets: list[np.ndarray],
        *,
        batch_size: int,
        seed: int,
        weights: np.ndarray | None = None,
        shards: np.ndarray | None = None,
        window_in_shards: int | None = None,
        taken: list[int] | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        self.buckets = buckets
        self.weights = np.ones(1 + max(int(bucket.max()) for bucket in buckets)) if weights is None else weights
        self.shards = shards
        self.window_in_shards = window_in_shards
        self.batch_size = batch_size
        self.seed = seed
        self.taken = [0] * len(buckets) if taken is None else list(taken)
        self.rank = rank
        self.num_ranks = num_ranks
        # Longer and more wanted buckets give more batches.
        self.shares = np.array([self.weights[bucket].sum() for bucket in buckets])
        if self.shares.sum() <= 0:
            raise ValueError("every clip has weight 0, so none can be drawn; raise one of `data.level_weights`.")
        if len(self.taken) != len(buckets):
            raise ValueError(
                f"the run was started with {len(self.taken)} lengths of crops, now there are {len(buckets)}; set "
                "`data.crop_in_frames` to the former or start a new `run.output_dir`."
            )

    def __iter__(self) -> Iterator[list[Draw]]:
        taken = list(self.taken)
        epochs: dict[tuple[int, int], np.ndarray] = {}
        while True:
            bucket = self._next_bucket(taken)
            start = taken[bucket] + self.rank * self.batch_size
            batch = []
            for place in range(start, start + self.batch_size):
                epoch, index = divmod(place, len(self.buckets[bucket]))
                if (bucket, epoch) not in epochs:
                    epochs.pop((bucket, epoch - 2), None)
                    epochs[bucket, epoch] = self._draw_epoch(bucket, epoch)
                batch.append((epoch, *epochs[bucket, epoch][index].tolist()))
            yield batch
            taken = self.advance(taken)

    def advance(self, taken: list[int]) -> list[int]:
        """Returns the draws that are taken after one more batch of every rank."""
        bucket = self._next_bucket(taken)
        return [
            count + (self.batch_size * self.num_ranks if index == bucket else 0) for index, count in enumerate(taken)
        ]

    def _next_bucket(self, taken: list[int]) -> int:
        """Chooses the bucket that is furthest behind its share."""
        return int(np.argmax(self.shares / self.shares.sum() * (sum(taken) + 1) - np.array(taken)))

    def _draw_epoch(self, bucket: int, epoch: int) -> np.ndarray:
        """Returns the draws of one epoch in order, `(draws, 2)`: the clip, and how often the epoch had it before."""
        rng = np.random.default_rng([self.seed, epoch, *([bucket] if bucket else [])])
        order = self.buckets[bucket][rng.permutation(len(self.buckets[bucket]))]
        weights = self.weights[order]
        if weights.min() < weights.max():
            # Systematic sampling: evenly spaced points on a line where each clip is as long as its weight.
            ends = np.cumsum(weights)
            points = (np.arange(len(order)) + rng.random()) * (ends[-1] / len(order))
            order = rng.permutation(order[np.searchsorted(ends, points, side="right").clip(max=len(order) - 1)])
        if self.window_in_shards is not None:
            window_of_shard = rng.permutation(int(self.shards.max()) + 1) // self.window_in_shards
            order = order[np.argsort(window_of_shard[self.shards[order]], kind="stable")]
        return np.stack([order, _count_earlier(order)], axis=1)


def _count_earlier(values: np.ndarray) -> np.ndarray:
    """Returns for each value how many equal ones come before it."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    is_first = np.concatenate([[True], ranked[1:] != ranked[:-1]])
    first_place = np.maximum.accumulate(np.where(is_first, np.arange(len(values)), 0))
    counts = np.empty(len(values), dtype=np.int64)
    counts[order] = np.arange(len(values)) - first_place
    return counts
