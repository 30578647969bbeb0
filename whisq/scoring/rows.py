"""Score files: JSON Lines with a row for every clip, appended while scoring, in one file or in parts.

    scores.jsonl                        the rows
    scores-00002-of-00004.jsonl         rows of the third of four processes or shards, until they are merged
    scores.meta.json                    which scorer made them; beside a shard, also whether it is done

A row has `id`, `key`, `status` ("ok" or "error"), `error`, `flags`, `overall_quality`, `scorer`, and what
`collection.make_row` adds. The key stands for all that the row depends on (`qamdt.keyed_rows`); of several rows of one id
the last one counts. Files of earlier versions, whose rows have no key, can be read, but no longer completed.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from qamdt.files import claim, is_text, iterate_lines, parse_json, read_json, write_json
from qamdt.keyed_rows import KeyedRows, hash_text
from qamdt.manifest import Record, clip_identity
from qamdt.quality_words import MAX_SCORE, MIN_SCORE
from qamdt.sound_files import CUT_TOLERANCE_IN_S


FORMAT = 2
FINISHED = "finished"  # in the note of a shard that is done: `describe_job`
_ROW_KEYS = {"id", "status", "error", "flags", "overall_quality", "scorer"}
_MOST = 1e9
_OFFSET_BITS = 48  # of a row's place; the bits above number its file


class ScoreRows:
    """The rows of score files, of each clip the last one; 16 bytes of memory for each row.

    Args:
        paths: The score files; a clip may have rows in one of them alone.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self._files = [_open(Path(path)) for path in paths]
        ids, places = array("Q"), array("Q")
        for number, path in enumerate(paths):
            for offset, row in _parse_file(Path(path)):
                ids.append(hash_text(row["id"]))
                places.append(number << _OFFSET_BITS | offset)
        all_ids, all_places = np.array(ids, np.uint64), np.array(places, np.uint64)
        self._ids, first = np.unique(all_ids, return_index=True)
        _, last = np.unique(all_ids[::-1], return_index=True)
        self._places = all_places[::-1][last]
        in_two_files = all_places[first] >> _OFFSET_BITS != self._places >> _OFFSET_BITS
        if in_two_files.any():
            clip_id = self._read(self._places[in_two_files][0])["id"]
            raise ValueError(f"clip {clip_id!r} has rows in two score files; give each file once.")

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the rows in the order of the files."""
        return map(self._read, np.sort(self._places))

    def read(self, clip_id: str) -> dict[str, Any] | None:
        """Returns the row of a clip, `None` when there is none."""
        clip = np.uint64(hash_text(clip_id))
        place = int(np.searchsorted(self._ids, clip))
        return self._read(self._places[place]) if place < len(self) and self._ids[place] == clip else None

    def _read(self, place: np.uint64) -> dict[str, Any]:
        number, offset = divmod(int(place), 1 << _OFFSET_BITS)
        self._files[number].seek(offset)
        return json.loads(self._files[number].readline())


def open_keyed_rows(out: Path, shard: tuple[int, int] | None = None) -> KeyedRows:
    """Finds the rows of a score file and of its parts; as a context, they are this process's to append to.

    Args:
        out: The score file, which ends in .jsonl.
        shard: Which part this process writes, as `(number from 0, how many)`; `out` itself when `None`.

    Raises:
        ValueError: There are rows without key.
    """
    return KeyedRows(out.parent, out.stem, shard, done="ok")


def merge_rows(rows: KeyedRows, ids: np.ndarray, keys: np.ndarray) -> None:
    """Leaves the file that one process writes at one go: no parts, and no row that another one has replaced.

    Args:
        rows: All rows of the file, held by this process; nothing happens where they are so already.
        ids: `hash_text` of the ids of the job's clips, in the order in which one process scores them.
        keys: Their keys.

    Raises:
        RuntimeError: A part is still being written.
    """
    parts = list_parts(rows.path)
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(claim(part))
        rows.refresh()
        found_ids, found_keys = rows.list_history()
        is_other = ~np.isin(found_ids, ids)
        _, first = np.unique(found_ids[is_other], return_index=True)
        _, last = np.unique(found_ids[is_other][::-1], return_index=True)
        others = np.argsort(first)
        wanted_ids = np.concatenate([found_ids[is_other][first][others], ids])
        wanted_keys = np.concatenate([found_keys[is_other][::-1][last][others], keys])
        if parts or not (np.array_equal(found_ids, wanted_ids) and np.array_equal(found_keys, wanted_keys)):
            rows.replace_all(rows.read(int(key)) for key in wanted_keys)
        for part in parts:
            settings_path(part).unlink(missing_ok=True)
            part.unlink()


def list_parts(out: Path) -> list[Path]:
    """Returns the parts of a score file that lie beside it, in the order of their numbers."""
    return sorted(out.parent.glob(f"{escape(out.stem)}-[0-9]*-of-[0-9]*.jsonl"))


def is_of_this_sound(row: dict[str, Any], manifest: str | Path, record: Record) -> bool:
    """Whether a row was made of the sound that a clip has today: the same file, and the same span of it.

    Sound that is gone cannot have changed, and rows of earlier versions do not say of which file they are.
    """
    if "file" not in row:
        return True
    file = clip_identity(manifest, record)[1]
    length_in_s = row.get("duration_in_s", record.duration_in_s)
    is_same_span = record.start_in_s == row["start_in_s"] and (
        None in (length_in_s, record.duration_in_s)
        or abs(length_in_s - record.duration_in_s) <= CUT_TOLERANCE_IN_S
        or (length_in_s < record.duration_in_s and "truncated" in row["flags"])
    )
    return is_same_span and file in (None, row["file"])


def list_errors(out: Path, ids: np.ndarray) -> list[tuple[str, str]]:
    """Lists id and error of the clips without score, of those whose `hash_text` of the id is among `ids`."""
    failed = [(row["id"], row["error"]) for row in ScoreRows([out]) if row["status"] != "ok"]
    is_ours = np.isin(np.array([hash_text(clip_id) for clip_id, _ in failed], np.uint64), ids)
    return [error for error, is_one in zip(failed, is_ours, strict=True) if is_one]


def read_settings(out: Path) -> dict[str, Any] | None:
    """What made a score file: scorer, encoders, frames; `None` when the note beside it is missing."""
    path = settings_path(out)
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} must say what made {str(out)!r}, and it holds something else; move it away.")
    return found


def settings_path(out: Path) -> Path:
    """Where it stands what made a score file."""
    return out.with_suffix(".meta.json")


def check_settings(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Refuses to add scores of something else than before, and returns what is to be noted beside the scores.

    Args:
        out: The score file.
        settings: What `WhisQScorer.describe` says.
    """
    noted = {"format": FORMAT}
    for path in (out, *list_parts(out)):
        found = read_settings(path) or {"format": FORMAT}
        if found.get("format") != FORMAT:
            raise ValueError(
                f"{str(path)!r} was written by another version, whose rows do not say what they depend on. Give another "
                "`--out`; the old file can still be read."
            )
        differing = {key: value for key, value in settings.items() if found.get(key, value) != value}
        if differing:
            raise ValueError(
                f"{str(path)!r} holds scores made with { {key: found[key] for key in differing} }, now it would be "
                f"{differing}; scores of different scorers do not mix. Give another `--out`."
            )
        noted |= found
    return {name: value for name, value in noted.items() if name != FINISHED} | settings


def describe_job(keys: np.ndarray) -> list:
    """Returns by what shards of one job know that they are: how many clips all of them have, and a digest."""
    return [len(keys), hashlib.blake2b(np.sort(keys).tobytes(), digest_size=8).hexdigest()]


def note_settings(out: Path, settings: dict[str, Any]) -> None:
    """Notes beside the scores what made them."""
    if read_settings(out) != settings:
        write_json(settings_path(out), settings)


def _check_row(row: dict[str, Any]) -> None:
    """Refuses a row whose fields no `whisq score` writes."""
    is_scored = row["status"] == "ok"
    checks = {
        "id": _is_text(row["id"]),
        "status": row["status"] in ("ok", "error"),
        "error": row["error"] is None if is_scored else _is_text(row["error"]),
        "flags": isinstance(row["flags"], list) and all(map(_is_text, row["flags"])),
        "scorer": _is_text(row["scorer"]),
        "source": _is_text(row.get("source", "")),
        "prompt": row.get("prompt") is None or _is_text(row["prompt"]),
        "path": _is_text(row.get("path", "")),
        "overall_quality": _is_score(row["overall_quality"]) if is_scored else row["overall_quality"] is None,
        "text_alignment": row.get("text_alignment") is None or _is_score(row["text_alignment"]),
        "duration_in_s": row.get("duration_in_s") is None or _is_positive(row["duration_in_s"]),
        "start_in_s": row.get("start_in_s") is None or _is_positive(row["start_in_s"]),
        "sampling_rate": row.get("sampling_rate") is None or _is_rate(row["sampling_rate"]),
        "frame_hop_in_s": not is_scored or (_is_positive(row.get("frame_hop_in_s")) and row["frame_hop_in_s"] > 0),
        "frame_overall_quality": not is_scored or _is_curve(row.get("frame_overall_quality")),
    }
    wrong = [name for name, is_right in checks.items() if not is_right]
    if wrong:
        raise ValueError(f"`{wrong[0]}` of a row of `whisq score` cannot be {str(row.get(wrong[0]))[:60]!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_text(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MOST  # neither NaN nor what no column holds


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_rate(value: Any) -> bool:
    return type(value) is int and 0 < value < _MOST


def _is_score(value: Any) -> bool:
    return _is_number(value) and MIN_SCORE <= value <= MAX_SCORE


def _is_curve(values: Any) -> bool:
    return isinstance(values, list) and len(values) > 0 and all(map(_is_score, values))


def _open(path: Path):
    if not path.is_file():
        raise FileNotFoundError(f"there is no score file {str(path)!r}.")
    return path.open("rb")


def _parse_file(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields where each whole line begins, and its row."""
    for number, (offset, line) in enumerate(iterate_lines(path), start=1):
        try:
            row = parse_json(line)
            if not isinstance(row, dict) or not _ROW_KEYS <= row.keys():
                raise ValueError(f"this is no row of `whisq score`: {line[:60]!r}")
            _check_row(row)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from error
        yield offset, row
