"""Results as JSON lines, appended as they come: whatever is killed, none is lost or made twice.

A row is known by its key, a digest of everything that it depends on: the input, by its content or `file_identity`, and
all settings of the step that made it and of the steps before. So a changed input or setting redoes just the rows that it
changes, and going back to the old one finds the old rows. A row is done, or it failed, with a reason.
"""

import hashlib
import json
import os
import re
import time
from array import array
from collections.abc import Iterable, Iterator
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from qamdt.files import claim, cut_torn_line, encode_json_line, iterate_lines, parse_json, replacing


DONE = "done"
FAILED = "failed"
_OFFSET_BITS = 48  # of a row's position; the bits above name its file
_SECONDS_BETWEEN_SYNCS = 5.0
_ROW_START = b'{"key": "'
_TORN_KEY = re.compile(rb'\{"key": "[0-9a-f]{0,16}(?:"|$)')


def make_key(*parts: Any) -> int:
    """Returns 64 bits that stand for JSON values; equal values have equal keys, on every machine."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def hash_text(text: str) -> int:
    """Returns 64 bits that stand for a text, the same ones on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def file_identity(path: str | Path) -> list[int]:
    """Returns size in bytes and time of change in ns, by which a file of the same path is known to be the same."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def digest_weights(folder: Path) -> str:
    """Returns the SHA-256 of a model's weights, by which it is known.

    Raises:
        FileNotFoundError: There are no weights in the folder.
    """
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not weights:
        raise FileNotFoundError(f"{str(folder)!r} must be the folder of a model, and it holds no weights.")
    return hashlib.sha256(b"".join(_digest_file(path) for path in weights)).hexdigest()


def _digest_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class KeyedRows:
    """The rows of one step: `NAME.jsonl` and `NAME-I-of-N.jsonl` of a folder are read, one of them is written.

    In memory there are 17 bytes for each row; the rows themselves stay on disk. A row has `key` (16 hexadecimal digits),
    `id`, `status`, a `reason` if it failed, and whatever the step made.

    Args:
        folder: Folder of the results; made when the first row is written.
        name: Name of the step.
        shard: Which part of the work this process does, as `(number from 0, how many)`; it writes a file of its own.
        done: What `status` of a row says that is done.

    Raises:
        ValueError: A line is no such row, such as one of an older version; the message names file and line.
    """

    def __init__(self, folder: Path, name: str, shard: tuple[int, int] | None = None, *, done: str = DONE):
        self.folder = folder
        self.name = name
        self.path = folder / (f"{name}.jsonl" if shard is None else f"{name}-{shard[0]:05d}-of-{shard[1]:05d}.jsonl")
        self.done = done
        self._file = None
        self._synced_at = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Reads which rows there are; those appended since the last time become visible."""
        keys, places, done = array("Q"), array("Q"), array("B")
        self._size_read = self._measure_size()
        self._paths = self._list_paths()
        for number, path in enumerate(self._paths):
            for offset, row in _read_rows(path):
                keys.append(int(row["key"], 16))
                places.append(number << _OFFSET_BITS | offset)
                done.append(row["status"] == self.done)
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
            raise KeyError(f"there is no row {key:016x} in {self.folder / self.name}.jsonl")
        number, offset = divmod(int(self._places[place]), 1 << _OFFSET_BITS)
        with self._paths[number].open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def history(self) -> Iterator[dict[str, Any]]:
        """Yields every row that was ever written, those too that a later one of the same key has replaced."""
        for path in self._list_paths():
            for _, row in _read_rows(path):
                yield row

    def list_history(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns `hash_text` of the id, and the key, of every row that was ever written, in the order of the files."""
        ids, keys = array("Q"), array("Q")
        for row in self.history():
            ids.append(hash_text(row["id"]))
            keys.append(int(row["key"], 16))
        return np.array(ids, np.uint64), np.array(keys, np.uint64)

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row, a whole line at once, so that a killed process tears at most the last one."""
        self.open()
        line = encode_json_line(row)
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

    def open(self) -> None:
        """Makes ready for appending: cuts off a torn last line, and keeps other processes away until `close`.

        Raises:
            RuntimeError: Another process writes these rows.
            ValueError: The file holds something else; it is left as it is.
        """
        if self._file is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            _check_tail(self.path)
        self._file = claim(self.path)
        cut_torn_line(self.path)
        if self._measure_size() != self._size_read:  # another process has written since we read, or a tail was torn
            self.refresh()

    def replace_all(self, rows: Iterable[dict[str, Any]]) -> None:
        """Puts other rows in the place of those of the file, which stays claimed; `rows` are taken one by one."""
        self.open()
        with replacing(self.path) as temporary:
            with temporary.open("wb") as file:
                file.writelines(map(encode_json_line, rows))
            claimed = claim(temporary)  # so that there is no moment at which others could claim the file
        self._file.close()
        self._file = claimed
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

    def __enter__(self) -> "KeyedRows":
        """Claims the rows for this process, until the end of the block."""
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _list_paths(self) -> list[Path]:
        name = escape(self.name)
        whole = self.folder / f"{self.name}.jsonl"
        shards = sorted(self.folder.glob(f"{name}-[0-9]*-of-[0-9]*.jsonl"))
        return [whole, *shards] if whole.is_file() else shards

    def _measure_size(self) -> int:
        return sum(path.stat().st_size for path in self._list_paths())

    def _find(self, key: int) -> int | None:
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        return place if place < len(self._keys) and int(self._keys[place]) == key else None


def _check_tail(path: Path) -> None:
    """Refuses a file without a whole line that does not begin as a row does: nothing of it may be cut off.

    Raises:
        ValueError: It holds something else.
    """
    if next(iterate_lines(path), None) is not None:
        return  # its rows have been read, so it is ours
    with path.open("rb") as file:
        tail = file.read(len(_ROW_START) + 17)
    if not _ROW_START.startswith(tail) and not _TORN_KEY.match(tail):
        raise ValueError(f"{str(path)!r} holds something else than results; give another file to write.")


def make_row(key: int, row_id: str, *, failure: str | None = None) -> dict[str, Any]:
    """Returns the part of a row that all steps share; `failure` is the reason of one that failed."""
    row = {"key": f"{key:016x}", "id": row_id}
    return row | ({"status": DONE} if failure is None else {"status": FAILED, "reason": failure})


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each row with its offset."""
    for number, (offset, line) in enumerate(iterate_lines(path), start=1):
        try:
            row = parse_json(line)
            int(row["key"], 16), row["status"], row["id"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not a row of results ({error!r}). A damaged line can be deleted, its row is "
                "made again; a file of an older version must be moved away."
            ) from error
        yield offset, row
