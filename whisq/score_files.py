"""Score files: JSON Lines with a row for every clip, appended while scoring, in one file or in parts.

    scores.jsonl                 the rows
    scores.jsonl.part-00003      rows of process 3, until they are merged
    scores.meta.json             which scorer made them

A row has `id`, `status` ("ok" or "error"), `error`, `flags`, `overall_quality`, `scorer`, and what `scoring.format_row`
adds. A last line without its newline was left by a process that was killed; it counts as not written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO


FORMAT = 1
_ROW_KEYS = {"id", "status", "error", "flags", "overall_quality", "scorer"}


def read_rows(path: str | Path, digest: hashlib._Hash | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a score file; a last line that was only half written is passed over.

    Args:
        path: The score file.
        digest: A hash to feed with the file's lines.
    """
    for number, line in enumerate(_whole_lines(Path(path)), start=1):
        if digest is not None:
            digest.update(line)
        try:
            yield _parse_row(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from error


class ScoreIndex:
    """Finds the rows of score files by id without keeping them in memory.

    Args:
        paths: The score files.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self._files = [Path(path).open("rb") for path in paths]
        self._places: dict[str, tuple[int, int]] = {}
        for number, path in enumerate(map(Path, paths)):
            for offset, line in _located_lines(path):
                clip_id = _parse_row(line)["id"]
                if clip_id in self._places:
                    raise ValueError(f"clip {clip_id!r} has two rows; give each score file once.")
                self._places[clip_id] = (number, offset)

    def read(self, clip_id: str) -> dict[str, Any] | None:
        """Returns the row of a clip, `None` when there is none."""
        if clip_id not in self._places:
            return None
        number, offset = self._places[clip_id]
        self._files[number].seek(offset)
        return json.loads(self._files[number].readline())


def list_score_files(out: Path) -> list[Path]:
    """The output and the part files beside it, as far as they exist."""
    return ([out] if out.is_file() else []) + sorted(out.parent.glob(f"{out.name}.part-*[0-9]"))


def part_path(out: Path, process_index: int) -> Path:
    """The part file that one of several processes writes."""
    return out.with_name(f"{out.name}.part-{process_index:05d}")


def merge_parts(out: Path, order: Sequence[str]) -> None:
    """Merges the part files into `out`.

    Args:
        out: The score file.
        order: Ids of the clips in the order in which one process would have written them.
    """
    files = list_score_files(out)
    if files in ([], [out]):
        return
    position = {clip_id: place for place, clip_id in enumerate(order)}
    found: dict[str, tuple[int, int, int]] = {}  # where a clip belongs, and the file and the byte where its row begins
    for number, file in enumerate(files):
        for offset, line in _located_lines(file):
            clip_id = _parse_row(line)["id"]
            found.setdefault(clip_id, (position.get(clip_id, -1), number, offset))
    with ExitStack() as stack:
        opened = [stack.enter_context(file.open("rb")) for file in files]
        merged = stack.enter_context(_replacing(out))
        for _, number, offset in sorted(found.values()):
            opened[number].seek(offset)
            merged.write(opened[number].readline())
    for file in files:
        if file != out:
            file.unlink()


def drop_errors(out: Path) -> None:
    """Removes the rows of clips that could not be scored, so that they are scored again."""
    for path in list_score_files(out):
        with _replacing(path) as kept:
            for line in _whole_lines(path):
                if _parse_row(line)["status"] == "ok":
                    kept.write(line)


def list_errors(out: Path, clip_ids: Collection[str]) -> list[tuple[str, str]]:
    """Lists id and error of those of the clips that have no score."""
    return [(row["id"], row["error"]) for row in read_rows(out) if row["status"] != "ok" and row["id"] in clip_ids]


def settings_path(out: Path) -> Path:
    """Where it stands which scorer made a score file."""
    return out.with_suffix(".meta.json")


def read_settings(out: Path) -> dict[str, Any] | None:
    """What made a score file: scorer, encoders, frames; `None` when the note beside it is missing."""
    path = settings_path(out)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Notes beside the scores what made them, and refuses to add scores of something else."""
    settings = {"format": FORMAT} | settings
    found = read_settings(out)
    if found is None:
        with _replacing(settings_path(out)) as file:
            file.write((json.dumps(settings, indent=2) + "\n").encode())
        return
    differing = {key: value for key, value in settings.items() if found.get(key) != value}
    if differing:
        raise ValueError(
            f"{str(out)!r} holds scores made with { {key: found.get(key) for key in differing} }, now it would be "
            f"{differing}; scores of different scorers do not mix. Give another `--out`."
        )


def cut_torn_line(path: Path) -> None:
    """Cuts off a last line that a killed process left half written."""
    content_length = path.stat().st_size
    with path.open("r+b") as file:
        end = content_length
        while end > 0:
            start = max(end - 65536, 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < content_length:
            file.truncate(end)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that takes the place of `path` when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _whole_lines(path: Path) -> Iterator[bytes]:
    return (line for _, line in _located_lines(path))


def _located_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields whole lines and where they begin, as bytes, because a torn one may end inside a character."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no score file {str(path)!r}.")
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def _parse_row(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict) or not _ROW_KEYS <= row.keys():
        raise ValueError(f"this is no row of `whisq score`: {line[:60]!r}")
    return row
