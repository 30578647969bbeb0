"""What training needs to know of every clip and text of a folder of encoded music, as columns of a file.

The file is mapped into memory, so that all processes of a machine share it, and a run begins without reading what is said
about each clip: that is read line by line, when a clip is drawn.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from qamdt.files import parse_json
from qamdt.keyed_rows import hash_text
from qamdt.line_index import LineReader
from qamdt.manifest import Record
from qamdt.shards import Place


# `offset`: where the clip's line begins; `shard`, `start`, `length`: its latents; `curve_start`: its first row in the file of
# curves; `source`: a number for each source.
CLIP = np.dtype(
    [("offset", "<i8"), ("shard", "<i4"), ("start", "<i8"), ("length", "<i4")]
    + [("curve_start", "<i8"), ("quality_score", "<f8"), ("source", "<i4")]
)
# `text`: `hash_text` of it, by which the rows are sorted; the others as above.
TEXT = np.dtype([("text", "<u8"), ("shard", "<i4"), ("start", "<i8"), ("length", "<i4")])


class ColumnBuilder:
    """Takes clips or texts one by one and makes columns of them; in memory are the columns alone."""

    def __init__(self):
        self._numbers, self._scores = array("q"), array("d")
        self._shards: dict[str, int] = {}
        self._sources: dict[str, int] = {}

    def add_clip(self, offset: int, record: Record, place: Place) -> None:
        """Adds a clip, whose line begins at `offset`."""
        source = self._sources.setdefault(record.source, len(self._sources))
        self._numbers.extend((offset, self._number(place), place.start, place.length, source))
        self._scores.append(np.nan if record.quality_score is None else record.quality_score)

    def add_text(self, text: str, place: Place) -> None:
        """Adds a text."""
        self._numbers.extend((hash_text(text) - 2**63, self._number(place), place.start, place.length))

    def _number(self, place: Place) -> int:
        return self._shards.setdefault(place.shard, len(self._shards))

    def clips(self) -> tuple[np.ndarray, list[str]]:
        """Returns the columns of the clips, and the shards that they number."""
        numbers = np.frombuffer(self._numbers, np.int64).reshape(-1, 5)
        columns = np.empty(len(numbers), CLIP)
        for place, name in enumerate(("offset", "shard", "start", "length", "source")):
            columns[name] = numbers[:, place]
        columns["quality_score"] = self._scores
        names = self._sort_shards(columns)
        columns["curve_start"] = _running_totals(columns["shard"], columns["length"])
        return columns, names

    def texts(self) -> tuple[np.ndarray, list[str]]:
        """Returns the columns of the texts, sorted, and the shards that they number."""
        numbers = np.frombuffer(self._numbers, np.int64).reshape(-1, 4)
        columns = np.empty(len(numbers), TEXT)
        columns["text"] = numbers[:, 0].astype(np.uint64) + np.uint64(2**63)
        for place, name in enumerate(("shard", "start", "length"), start=1):
            columns[name] = numbers[:, place]
        names = self._sort_shards(columns)
        return columns[np.argsort(columns["text"], kind="stable")], names

    def _sort_shards(self, columns: np.ndarray) -> list[str]:
        names = sorted(self._shards)
        new_number = np.empty(len(names), np.int64)
        new_number[[self._shards[name] for name in names]] = np.arange(len(names))
        columns["shard"] = new_number[columns["shard"]]
        return names


def _running_totals(groups: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the sum of the lengths before each entry that belong to its group."""
    order = np.argsort(groups, kind="stable")
    starts = np.cumsum(lengths[order], dtype=np.int64) - lengths[order]
    totals = np.empty(len(groups), dtype=np.int64)
    totals[order] = starts - starts[np.searchsorted(groups[order], groups[order])]
    return totals


def read_columns(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """Maps the columns in a file into memory.

    Raises:
        RuntimeError: The file is damaged.
    """
    try:
        columns = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise RuntimeError(f"{path} is damaged ({error}); delete it and encode again.") from error
    if columns.dtype != dtype or columns.shape != (count,):
        raise RuntimeError(f"{path} does not hold the columns of {count} rows; delete it and encode again.")
    return columns


class RecordReader(Sequence):
    """The records of clips, each read from its line when it is asked for.

    Args:
        path: File of the clips.
        offsets: Where the line of each begins.
    """

    def __init__(self, path: Path, offsets: np.ndarray):
        self._lines = LineReader(path, offsets)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, clip: int) -> Record:
        if not 0 <= clip < len(self):
            raise IndexError(f"there are {len(self)} clips, and none has the number {clip}")
        return Record.from_dict(parse_json(self._lines.read(clip))["record"])

    def has_last_line(self) -> bool:
        """Whether the file goes on until the last of them."""
        return not len(self) or self._lines.read(len(self) - 1).endswith(b"\n")


def group_by(numbers: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """Yields every number that occurs, rising, and the places at which it does."""
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    for value, (start, end) in zip(values.tolist(), pairwise([*starts, len(order)]), strict=True):
        yield value, order[start:end]
