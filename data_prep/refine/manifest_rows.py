"""A manifest as rows that may be bad: each is read alone, so that one broken line does not stop the others."""

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qamdt.files import parse_json
from qamdt.manifest import Record, parse_line


class ManifestRows:
    """The lines of a manifest by position; in memory there are 12 bytes for each of them.

    Args:
        path: The JSONL file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no manifest at {str(path)!r}; give the path of a JSONL file.")
        offsets, numbers, ids = array("Q"), array("I"), array("q")
        with self.path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    offsets.append(offset)
                    numbers.append(number)
                    ids.append(_hash_id(line))
                offset += len(line)
        if not offsets:
            raise ValueError(f"the manifest {str(path)!r} holds no clip; it needs one JSON object a line.")
        self._offsets = np.frombuffer(offsets, np.uint64)
        self._numbers = numbers
        self._duplicates = self._find_duplicates(np.frombuffer(ids, np.int64))
        self._file = self.path.open("rb")

    def __len__(self) -> int:
        return len(self._offsets)

    def line_number(self, position: int) -> int:
        """Returns the number of the line of a clip, from 1."""
        return self._numbers[position]

    def read(self, position: int) -> Record:
        """Reads one clip.

        Raises:
            ValueError: The line is no clip, or its id was used before; the message says why.
        """
        self._file.seek(int(self._offsets[position]))
        record = parse_line(self._file.readline())
        if position in self._duplicates:
            first = self.line_number(self._duplicates[position])
            raise ValueError(f"the id {record.id!r} was used in line {first} already; ids must be unique.")
        return record

    def read_good(self, positions: Iterator[int] | range) -> Iterator[tuple[int, Record]]:
        """Yields the clips at these positions that can be read."""
        for position in positions:
            try:
                record = self.read(position)
            except ValueError:
                continue
            yield position, record

    def _find_duplicates(self, ids: np.ndarray) -> dict[int, int]:
        """Maps each position whose id occurs before to the first position with that id."""
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        positions = np.flatnonzero((first[inverse] != np.arange(len(ids))) & (ids != -1))
        return {int(position): int(first[inverse[position]]) for position in positions}


def _hash_id(line: bytes) -> int:
    """Returns a number that stands for the id of a line, -1 where there is none."""
    try:
        row_id = parse_json(line)["id"]
    except (ValueError, KeyError, TypeError):
        return -1
    return hash(row_id) if isinstance(row_id, str) else -1
