"""What is written about a piece of music in tables, in files beside it, and inside it: captions, tags and scores.

A note says something about a whole file, or about the part of it that begins at `start_in_s` and lasts `duration_in_s`.
In tables (CSV, JSONL) and JSON files it has these fields; any other becomes a tag:

    path             the sound file, relative to the music folder (tables only); also `file_name`, `filename` or `file`
    caption          a sentence; `captions` a list of them, in CSV separated by ` | `
    quality_score    mean opinion score, 1 to 5; with `quality_scorer`, who gave it
    quality_frames   scores along the part, `quality_frame_rate` of them a second
    start_in_s, duration_in_s, source, license

Strangers wrote all this, so each row, file or tag that makes no sense is left out by itself, with a reason; the music and
what else is said about it are kept.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from qamdt.files import is_text, parse_json, read_json, read_text_lines
from qamdt.manifest import Record


PATH_FIELDS = ("path", "file_name", "filename", "file")
_FIELDS = ("quality_score", "quality_frames", "quality_frame_rate", "quality_scorer", "source", "license")
_NUMBERS = ("start_in_s", "duration_in_s", "quality_score", "quality_frame_rate")
# What the tags inside files are called here, as Vorbis comments and as ID3 frames.
_VORBIS_TAGS = {"genre": "genre", "mood": "mood", "bpm": "tempo_bpm", "initialkey": "key", "instrument": "instruments"}
_ID3_TAGS = {"TCON": "genre", "TMOO": "mood", "TBPM": "tempo_bpm", "TKEY": "key"}


@dataclass(frozen=True, kw_only=True)
class Note:
    """What one row or file says.

    Args:
        captions: Sentences about the music.
        tags: Everything that is no field of its own.
        fields: Fields of a manifest's record by name.
        start_in_s: Where the part begins that this is about; `None` for the whole file.
        duration_in_s: Length of that part; to the end when `None`.
        faults: What else the row or file says, and cannot be used.
    """

    captions: tuple[str, ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    start_in_s: float | None = None
    duration_in_s: float | None = None
    faults: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Note":
        """Builds a note from a row; empty values are no values.

        Raises:
            ValueError: A field holds what a manifest cannot hold.
        """
        if not isinstance(values, dict):
            raise ValueError(f"expected an object of fields, got {str(values)[:60]!r}.")
        if not is_text(json.dumps(values, ensure_ascii=False)):
            raise ValueError("it holds half of a surrogate pair, which is no character.")
        values = {key: value for key, value in values.items() if value not in (None, "", [])}
        for name in _NUMBERS:
            if name in values:
                values[name] = _number(name, values[name])
        captions = values.pop("captions", [])
        captions = [part.strip() for part in captions.split(" | ")] if isinstance(captions, str) else captions
        if "caption" in values and isinstance(captions, list):
            captions = [values.pop("caption"), *captions]
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"`captions` must be sentences, got {str(captions)[:60]}.")
        fields = {name: values.pop(name) for name in _FIELDS if name in values}
        if isinstance(fields.get("quality_frames"), str):
            fields["quality_frames"] = parse_json(fields["quality_frames"])
        start_in_s, duration_in_s = values.pop("start_in_s", None), values.pop("duration_in_s", None)
        tags = values.pop("tags", {})
        if not isinstance(tags, dict):
            raise ValueError(f"`tags` must be an object, got {str(tags)[:60]}.")
        tags, faults = _check_tempo({**tags, **values})
        # What a record cannot hold is no note either.
        Record.from_dict(
            {"id": "note", "path": "note", "duration_in_s": duration_in_s or 1.0, "start_in_s": start_in_s or 0.0}
            | {"captions": captions, "tags": tags}
            | fields
        )
        return cls(
            captions=tuple(dict.fromkeys(captions)),
            start_in_s=start_in_s,
            duration_in_s=duration_in_s,
            fields=fields,
            tags=tags,
            faults=faults,
        )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(f"`{name}` must be a number, got {value!r}.")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`{name}` must be a number, got {value!r}.") from error
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
    return number


def read_tempo(text: Any) -> float | None:
    """Reads a tempo as people write it, such as 120, "120 BPM" or "127,5"; 0 and nothing mean that it is unknown.

    Raises:
        ValueError: It is no tempo.
    """
    found = re.fullmatch(r"\s*(\d{1,4}(?:[.,]\d{0,9})?)\s*(?:bpm)?\s*", str(text), re.IGNORECASE)
    if found is None:
        raise ValueError(f"the tempo must be beats a minute, such as 120, got {str(text)[:40]!r}.")
    return float(found[1].replace(",", ".")) or None


def _check_tempo(tags: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns tags whose tempo is a number or not there, and what is wrong with them."""
    try:
        tempo = read_tempo(tags["tempo_bpm"]) if tags.get("tempo_bpm") is not None else None
        faults: tuple[str, ...] = ()
    except ValueError as error:
        tempo, faults = None, (str(error),)
    others = {name: value for name, value in tags.items() if name != "tempo_bpm"}
    return others | ({} if tempo is None else {"tempo_bpm": tempo}), faults


def read_table(path: Path, report: Callable[[str, str], None]) -> dict[str, list[Note]]:
    """Reads a CSV or JSONL file with a row for each file or part of a file.

    Args:
        path: The table.
        report: Told the place and the fault of each row, or part of one, that is left out.

    Returns:
        The notes by path.

    Raises:
        ValueError: It is no table in UTF-8 that says which files its rows are about; the message names it.
    """
    notes: dict[str, list[Note]] = {}
    num_rows = 0
    for line, values, fault in _read_rows(path):
        place = f"{path}, line {line}"
        num_rows += 1
        try:
            if fault is not None:
                raise ValueError(fault)
            names = {_plain(field): values.pop(field) for field in list(values) if _plain(field) in PATH_FIELDS}
            name = next((str(names[field]).strip() for field in PATH_FIELDS if names.get(field)), None)
            if name is None or not is_text(name):
                raise ValueError("the field `path` is missing.")
            note = Note.from_dict(values)
        except ValueError as error:
            report(place, str(error))
            continue
        for fault in note.faults:
            report(place, fault)
        notes.setdefault(PurePosixPath(name).as_posix(), []).append(note)
    if num_rows and not notes:
        raise ValueError(f"no row of the table {str(path)!r} can be used; each must name its file in a field `path`.")
    return notes


def _column_name(field: str) -> str:
    """Returns the name of a column as it is known here, where it is only written in another way."""
    return _plain(field) if _plain(field) in (*_FIELDS, *_NUMBERS, "caption", "captions", "tags") else field.strip()


def _plain(field: str) -> str:
    """Returns the name of a column without the capitals and spaces that people write."""
    return field.strip().lower()


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """Yields line number, row and fault."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise ValueError(f"a table of metadata must be a .csv or .jsonl file, got {str(path)!r}.")
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:1000]:
        raise ValueError(f"the table {str(path)!r} must be in UTF-8, and it is UTF-16 or no text; save it as UTF-8.")
    yield from (_read_csv_rows if suffix == ".csv" else _read_json_rows)(path, content)


def _read_json_rows(path: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except ValueError as error:
            yield number, {}, f"it is no JSON in UTF-8: {error}"
            continue
        is_row = isinstance(values, dict)
        yield (
            number,
            values if is_row else {},
            None if is_row else f"expected a JSON object, got {str(values)[:60]!r}.",
        )


def _read_csv_rows(path: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    # A byte that is no UTF-8 becomes half of a surrogate pair, so that it spoils its own row alone.
    # A quote that nobody closes is an error, or else it would take all rows behind it for one cell.
    reader = csv.DictReader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""), strict=True)
    try:
        header = [_column_name(name) for name in reader.fieldnames or []]
    except csv.Error as error:
        raise ValueError(f"the header of the table {str(path)!r} cannot be read: {error}.") from error
    if len({*header}) < len(header):
        raise ValueError(f"the table {str(path)!r} must name each column once, got {ascii(header)[:200]}.")
    reader.fieldnames = header
    if not {*map(_plain, header)} & {*PATH_FIELDS}:
        raise ValueError(
            f"the header of the table {str(path)!r} must name the files in a column `path` (or {PATH_FIELDS[1:]}), "
            f"got {ascii(header)[:200]}."
        )
    while True:
        first_line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # such as a cell of more than 131,072 characters
            hint = "; a quote is never closed" if "end of data" in str(error) else ""
            yield first_line, {}, f"it is no row of a CSV file: {error}{hint}."
            continue
        fault = "the row has more cells than the header." if None in row else None
        if fault is None and not all(is_text(cell) for cell in row.values() if cell):
            fault = "the row is not UTF-8; save the table as UTF-8."
        yield reader.line_num, {} if fault else row, fault


def read_sidecars(audio: Path, root: Path, report: Callable[[str, str], None]) -> list[Note]:
    """Reads the files beside a sound file: captions, one a line, from `.txt`; a note or a list of notes from `.json`.

    Args:
        audio: The sound file.
        root: The folder that they must lie in: a link that leads out of it is left out.
        report: Told the name and the fault of each file, or part of one, that is left out.
    """
    notes = []
    for suffix in (".txt", ".json"):
        for path in dict.fromkeys((audio.with_suffix(suffix), audio.with_name(audio.name + suffix))):
            if not path.is_file():
                continue
            try:
                if not Path(os.path.realpath(path)).is_relative_to(root.resolve()):
                    raise ValueError("it is a link that leads out of the folder.")
                found = _read_sidecar(path)
            except (ValueError, OSError) as error:
                report(path.name, str(error))
                continue
            for fault in (fault for note in found for fault in note.faults):
                report(path.name, fault)
            notes += found
    return notes


def _read_sidecar(path: Path) -> list[Note]:
    if path.suffix == ".txt":
        return [Note(captions=tuple(line.strip() for line in read_text_lines(path) if line.strip()))]
    values = read_json(path)
    return [Note.from_dict(row) for row in (values if isinstance(values, list) else [values])]


def read_embedded_tags(audio: Path) -> Note:
    """Reads genre, mood, tempo, key and instruments from ID3 tags or Vorbis comments (needs the package `mutagen`).

    A comment counts as a caption. Title and artist are left out: they do not say how the music sounds.

    Raises:
        ValueError: The tags cannot be read.
    """
    import mutagen

    try:
        file = mutagen.File(audio)
        found = {} if file is None or not file.tags else _collect_tags(file.tags)
    except Exception as error:  # noqa: BLE001  on damaged files mutagen fails with whatever comes up
        raise ValueError(f"its tags cannot be read: {error!r}") from error
    captions = found.pop("captions", [])
    tags = {name: texts if name == "instruments" else texts[0] for name, texts in found.items() if texts}
    return Note.from_dict({"captions": captions, "tags": tags})


def _collect_tags(tags: Any) -> dict[str, list[str]]:
    """Returns the texts of the tags by our names, and the comments as `captions`."""
    if hasattr(tags, "getall"):  # ID3
        texts = {ours: _id3_texts(tags, frame) for frame, ours in _ID3_TAGS.items()}
        return texts | {"captions": _id3_texts(tags, "COMM")}
    texts = {ours: list(tags.get(name) or []) for name, ours in _VORBIS_TAGS.items()}
    return texts | {"captions": [text for name in ("description", "comment") for text in tags.get(name) or []]}


def _id3_texts(tags: Any, frame: str) -> list[str]:
    return [str(text) for found in tags.getall(frame) for text in found.text if str(text)]


def describe_tags(tags: dict[str, Any]) -> str | None:
    """Returns a plain caption made of the tags that say how music sounds, or `None` when there are none."""
    parts = [tags.get(name) for name in ("mood", "genre", "style", "instruments", "key")]
    words = [", ".join(map(str, part)) if isinstance(part, list | tuple) else str(part) for part in parts if part]
    if tags.get("tempo_bpm"):
        words.append(f"{tags['tempo_bpm']:g} bpm")
    return ", ".join(words) or None
