"""Long JSON Lines files by position: a few bytes of memory for each line, the lines themselves stay on disk."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qamdt.keyed_rows import file_identity, hash_text


_BLOCK = 4096
_FEWEST_LATEST, _MOST_LATEST = 1 << 16, 1 << 19


class LineReader:
    """Reads lines of a file by position; processes that share it, forked or sent there, read side by side.

    Args:
        path: The file.
        offsets: Where each line begins, in bytes, `(lines,)`.
    """

    def __init__(self, path: str | Path, offsets: np.ndarray):
        self.path = Path(path)
        self._offsets = offsets
        self._identity = file_identity(self.path)
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, position: int) -> bytes:
        """Returns a line, with its newline if it has one.

        Raises:
            RuntimeError: The file is another one than when its lines were found.
        """
        if self._file is None:
            self._open()
        offset, line = int(self._offsets[position]), b""
        while block := os.pread(self._file, _BLOCK, offset + len(line)):
            end = block.find(b"\n") + 1
            line += block[:end] if end else block
            if end:
                break
        return line

    def _open(self) -> None:
        if file_identity(self.path) != self._identity:
            raise RuntimeError(f"{str(self.path)!r} has changed since it was listed; run again.")
        self._file = os.open(self.path, os.O_RDONLY)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}

    def __del__(self):
        if getattr(self, "_file", None) is not None:
            os.close(self._file)


class FirstPlaces:
    """Remembers where each of many names came first: about 24 bytes of memory for each, however long it is.

    Args:
        read_name: Returns the name at a place, by which names of equal digest are told apart.
    """

    def __init__(self, read_name: Callable[[int], str | None]):
        self._read_name = read_name
        self._hashes = np.zeros(0, np.uint64)
        self._places = np.zeros(0, np.uint64)
        self._latest: dict[int, int] = {}

    def find_or_add(self, name: str, place: int) -> int | None:
        """Returns the place at which a name came first; `None` when that is now."""
        number = hash_text(name)
        found = self._find(number)
        if found is not None:
            return found if self._read_name(found) == name else None
        self._latest[number] = place
        if len(self._latest) >= min(max(_FEWEST_LATEST, len(self._hashes) // 8), _MOST_LATEST):
            self._sort_in()
        return None

    def _find(self, number: int) -> int | None:
        if number in self._latest:
            return self._latest[number]
        row = int(self._hashes.searchsorted(np.uint64(number)))
        return int(self._places[row]) if row < len(self._hashes) and self._hashes[row] == number else None

    def _sort_in(self) -> None:
        hashes = np.concatenate([self._hashes, np.fromiter(self._latest, np.uint64, len(self._latest))])
        places = np.concatenate([self._places, np.fromiter(self._latest.values(), np.uint64, len(self._latest))])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places, self._latest = hashes[order], places[order], {}
