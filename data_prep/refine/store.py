"""Results of one step, one JSON line each, appended as they come: whatever is killed, no result is lost or made twice.

A row is known by its key, a digest of everything that it depends on: the clip and all settings of its step and of the
steps before. So a changed prompt, model or threshold redoes just the rows that it changes, and going back to the old
settings finds the old rows. A row either is `done` or `failed`, with a reason.
"""

import fcntl
import hashlib
import json
import os
import time
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.refine.spending import Usage


DONE = "done"
FAILED = "failed"
_OFFSET_BITS = 48  # of a row's position; the bits above name its file
_SECONDS_BETWEEN_SYNCS = 5.0


def make_key(*parts: Any) -> int:
    """Returns 64 bits that stand for JSON values; equal values have equal keys, on every machine."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class RowStore:
    """The rows of one step: all files `STEP*.jsonl` of a folder are read, one of them is written.

    In memory there are 25 bytes for each row; the rows themselves stay on disk.

    Args:
        folder: Folder of the results.
        step: Name of the step.
        shard: Name of the part of the work that this process does; it writes to a file of its own.
    """

    def __init__(self, folder: Path, step: str, shard: str = ""):
        self.folder = folder
        self.step = step
        self.path = folder / f"{step}{shard}.jsonl"
        self.usage = Usage()
        self._file = None
        self._synced_at = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Reads which rows there are; those appended since the last time become visible."""
        keys, places, done = array("Q"), array("Q"), array("B")
        self.usage = Usage()
        self._size_read = self._measure_size()
        self._paths = sorted(self.folder.glob(f"{self.step}*.jsonl"))
        for number, path in enumerate(self._paths):
            for offset, row in _read_rows(path):
                keys.append(int(row["key"], 16))
                places.append(number << _OFFSET_BITS | offset)
                done.append(row["status"] == DONE)
                if "usage" in row:
                    self.usage += Usage(**row["usage"])
        found = np.frombuffer(keys, np.uint64) if keys else np.zeros(0, np.uint64)
        is_done = np.frombuffer(done, np.uint8) if done else np.zeros(0, np.uint8)
        # Of several rows of one key a done one counts, and among equals the last one.
        order = np.lexsort((np.arange(len(found)), is_done, found))
        is_last = np.append(found[order][1:] != found[order][:-1], True)[: len(order)]
        chosen = order[is_last]
        self._keys = found[chosen]
        self._done = is_done[chosen].astype(bool)
        self._places = (np.frombuffer(places, np.uint64) if places else np.zeros(0, np.uint64))[chosen]

    def __len__(self) -> int:
        return len(self._keys)

    def status(self, key: int) -> str | None:
        """Returns `DONE`, `FAILED`, or `None` where there is no such row."""
        place = self._find(key)
        return None if place is None else DONE if self._done[place] else FAILED

    def read(self, key: int) -> dict[str, Any]:
        """Reads a row."""
        place = self._find(key)
        if place is None:
            raise KeyError(f"there is no row {key:016x} in {self.folder / self.step}*.jsonl")
        number, offset = divmod(int(self._places[place]), 1 << _OFFSET_BITS)
        with self._paths[number].open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row: `key`, `id`, `status`, a `reason` if it failed, and whatever the step made."""
        self._write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def open(self) -> None:
        """Makes ready for appending: cuts off a torn last line, and keeps other processes away until `close`."""
        if self._file is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise RuntimeError(
                f"another process is writing {str(self.path)!r}; wait for it, or give each process its `--shard`."
            ) from error
        os.ftruncate(file.fileno(), _end_of_last_line(self.path))
        self._file = file
        if self._measure_size() != self._size_read:  # another process has written since we read, or a tail was torn
            self.refresh()

    def sync(self) -> None:
        """Brings everything to disk, so that not even a power cut loses it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Lets other processes write."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def _measure_size(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob(f"{self.step}*.jsonl"))

    def _find(self, key: int) -> int | None:
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        return place if place < len(self._keys) and int(self._keys[place]) == key else None

    def _write(self, line: bytes) -> None:
        """Writes a whole line at once, so that a killed process tears at most the last one."""
        self.open()
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(f"the line did not fit into {str(self.path)!r}; free disk space and run again.")
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise
        if time.monotonic() - self._synced_at > _SECONDS_BETWEEN_SYNCS:
            os.fsync(self._file.fileno())
            self._synced_at = time.monotonic()


def _read_rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """Yields each row with its offset; a last line without its newline is passed over."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                int(row["key"], 16), row["status"], row["id"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not a row of results ({error}); delete this line, its row is made again."
                ) from error
            yield offset, row
            offset += len(line)


def _end_of_last_line(path: Path) -> int:
    """Returns the length of a file up to its last newline."""
    block = 1 << 16
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
