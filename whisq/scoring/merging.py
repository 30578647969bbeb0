"""Makes one score file of those of several shards: the one that a single process would have written."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from qamdt.files import claim, iterate_lines, parse_json, write_atomically
from qamdt.keyed_rows import KeyedRows, hash_text
from qamdt.line_index import LineReader
from whisq.scoring.rows import FINISHED, list_parts, note_settings, read_settings, settings_path


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.jsonl")


def merge_parts(out: Path, parts: Sequence[Path] = ()) -> int:
    """Merges the score files of all shards of a job into one; done again, it changes nothing.

    Shards are neighbours in the order of one process, so their rows one after the other are its rows; of several rows of a
    clip the last one stays, where the first one was. Parts that lie beside `out` are removed in the end, others are not.

    Args:
        out: The score file to write or to complete.
        parts: The parts; those beside `out` when empty.

    Returns:
        How many rows the file has.

    Raises:
        ValueError: A shard is missing, has not finished, or was made with other settings or of other clips.
        RuntimeError: A part is still being written.
    """
    beside = list_parts(out)
    parts = sorted(parts or beside, key=lambda path: path.name)
    if not parts:
        if not out.is_file():
            raise FileNotFoundError(
                f"there are no shards of {str(out)!r} to merge; make them with `whisq score --shard`."
            )
        return sum(1 for _ in iterate_lines(out))
    settings = _check_parts(out, parts)
    with ExitStack() as stack:
        rows = stack.enter_context(KeyedRows(out.parent, out.stem, done="ok"))
        for part in parts:
            stack.enter_context(claim(part))
        files = [rows.path, *parts]
        wanted = _choose_rows(files)
        write_atomically(out, lambda file: _copy(files, wanted, file))
        note_settings(out, settings)
        for part in set(parts) & set(beside):
            settings_path(part).unlink(missing_ok=True)
            part.unlink()
    return len(wanted[0])


def _check_parts(out: Path, parts: Sequence[Path]) -> dict[str, Any]:
    """Refuses parts that are not all shards of one job, and returns the settings of all."""
    names = [_PART.fullmatch(path.name) for path in parts]
    for path, name in zip(parts, names, strict=True):
        if name is None or not path.is_file():
            raise ValueError(f"{str(path)!r} is no shard of `whisq score`, such as {out.stem}-00000-of-00004.jsonl.")
    counts = sorted({int(name[3]) for name in names})
    if len(counts) > 1:
        raise ValueError(f"the shards are of jobs of {counts} parts; remove those of the job that is not wanted.")
    missing = sorted(set(range(counts[0])) - {int(name[2]) for name in names})
    if missing or len(parts) != counts[0]:
        reason = f"shard {missing[0]}/{counts[0]} is missing" if missing else "a shard is there twice"
        raise ValueError(f"{reason}; give each of the {counts[0]} shards once.")
    before, settings = read_settings(out), None
    for path, name in zip(parts, names, strict=True):
        found = read_settings(path) or {}
        if FINISHED not in found:
            raise ValueError(f"shard {int(name[2])}/{counts[0]} has not finished; run its command again.")
        for other in (settings, None if before is None else before | {FINISHED: found[FINISHED]}):
            _compare(path, found, found if other is None else other)
        settings = found
    return {name: value for name, value in settings.items() if name != FINISHED}


def _compare(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if differing:
        values = {name: (found.get(name), expected.get(name)) for name in differing}
        what = "were made of other clips than" if differing == [FINISHED] else "were made with other settings than"
        raise ValueError(f"the scores in {str(path)!r} {what} the rest: {values}; score all shards alike.")


def _choose_rows(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Returns file and offset of the rows that stay, in their order."""
    ids, numbers, offsets = array("Q"), array("I"), array("Q")
    for number, path in enumerate(files):
        for offset, line in iterate_lines(path):
            ids.append(hash_text(parse_json(line)["id"]))
            numbers.append(number)
            offsets.append(offset)
    if not ids:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    found = np.array(ids, np.uint64)
    _, first = np.unique(found, return_index=True)
    _, last = np.unique(found[::-1], return_index=True)
    chosen = (len(found) - 1 - last)[np.argsort(first)]
    return np.array(numbers)[chosen], np.array(offsets)[chosen]


def _copy(files: Sequence[Path], wanted: tuple[np.ndarray, np.ndarray], target: Path) -> None:
    readers = [LineReader(path, wanted[1]) for path in files]
    with target.open("wb") as file:
        file.writelines(_read(readers, wanted[0]))


def _read(readers: Sequence[LineReader], numbers: np.ndarray) -> Iterator[bytes]:
    for place, number in enumerate(numbers):
        yield readers[number].read(place)
