"""What is written about a piece of music in tables, in files beside it, and inside it: captions, tags and scores.

A note says something about a whole file, or about the part of it that begins at `start_in_s` and lasts `duration_in_s`.
In tables (CSV, JSONL) and JSON files it has these fields; any other becomes a tag:

    path             the sound file, relative to the music folder (tables only)
    caption          a sentence; `captions` a list of them, in CSV separated by ` | `
    quality_score    mean opinion score, 1 to 5; with `quality_scorer`, who gave it
    quality_frames   scores along the part, `quality_frame_rate` of them a second
    start_in_s, duration_in_s, source, license
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any


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
    """

    captions: tuple[str, ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    start_in_s: float | None = None
    duration_in_s: float | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Note":
        """Builds a note from a row; empty values are no values."""
        values = {key: value for key, value in values.items() if value not in (None, "", [])}
        for name in _NUMBERS:
            if name in values:
                values[name] = _number(name, values[name])
        captions = values.pop("captions", [])
        captions = [part.strip() for part in captions.split(" | ")] if isinstance(captions, str) else list(captions)
        if "caption" in values:
            captions.insert(0, values.pop("caption"))
        if not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"`captions` must be sentences, got {captions!r}.")
        frames = values.get("quality_frames")
        if isinstance(frames, str):
            values["quality_frames"] = json.loads(frames)
        return cls(
            captions=tuple(dict.fromkeys(captions)),
            start_in_s=values.pop("start_in_s", None),
            duration_in_s=values.pop("duration_in_s", None),
            fields={name: values.pop(name) for name in _FIELDS if name in values},
            tags={**values.pop("tags", {}), **values},
        )


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a number, got {value!r}.") from error


def read_table(path: Path, report: Callable[[str, str], None]) -> dict[str, list[Note]]:
    """Reads a CSV or JSONL file with a row for each file or part of a file.

    Args:
        path: The table.
        report: Told the place and the fault of each bad row, which is left out.

    Returns:
        The notes by path.
    """
    notes: dict[str, list[Note]] = {}
    for line, values, fault in _read_rows(path):
        try:
            if fault is not None:
                raise ValueError(fault)
            name = str(values.pop("path", "") or "")
            if not name:
                raise ValueError("the field `path` is missing.")
            notes.setdefault(PurePosixPath(name).as_posix(), []).append(Note.from_dict(values))
        except (ValueError, TypeError, AttributeError) as error:
            report(f"{path}, line {line}", str(error))
    return notes


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """Yields line number, row and fault."""
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                fault = "the row has more cells than the header." if None in row else None
                yield reader.line_num, {} if fault else row, fault
    elif path.suffix.lower() == ".jsonl":
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                values = json.loads(line) if line.strip() else None
            except ValueError as error:
                yield number, {}, f"it is no JSON: {error}"
                continue
            if isinstance(values, dict):
                yield number, values, None
            elif values is not None:
                yield number, {}, f"expected a JSON object, got {line[:60]!r}."
    else:
        raise ValueError(f"a table of metadata must be a .csv or .jsonl file, got {str(path)!r}.")


def read_sidecars(audio: Path) -> list[Note]:
    """Reads the files beside a sound file: captions, one a line, from `.txt`; a note or a list of notes from `.json`."""
    notes = []
    for suffix in (".txt", ".json"):
        for path in (audio.with_suffix(suffix), audio.with_name(audio.name + suffix)):
            if not path.is_file():
                continue
            text = path.read_text(encoding="utf-8-sig")
            if suffix == ".txt":
                notes.append(Note(captions=tuple(line.strip() for line in text.splitlines() if line.strip())))
                continue
            try:
                values = json.loads(text)
                notes += [Note.from_dict(row) for row in (values if isinstance(values, list) else [values])]
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path.name} beside it: {error}") from error
    return notes


def read_embedded_tags(audio: Path) -> Note:
    """Reads genre, mood, tempo, key and instruments from ID3 tags or Vorbis comments (needs the package `mutagen`).

    A comment counts as a caption. Title and artist are left out: they do not say how the music sounds.
    """
    import mutagen

    try:
        file = mutagen.File(audio)
    except mutagen.MutagenError as error:
        raise ValueError(f"its tags cannot be read: {error}") from error
    if file is None or not file.tags:
        return Note()
    if hasattr(file.tags, "getall"):  # ID3
        values = {ours: _id3_texts(file.tags, frame) for frame, ours in _ID3_TAGS.items()}
        captions = _id3_texts(file.tags, "COMM")
    else:
        values = {ours: file.tags.get(name) or [] for name, ours in _VORBIS_TAGS.items()}
        captions = [text for name in ("description", "comment") for text in file.tags.get(name) or []]
    tags: dict[str, Any] = {
        name: list(texts) if name == "instruments" else texts[0] for name, texts in values.items() if texts
    }
    if "tempo_bpm" in tags:
        tags["tempo_bpm"] = _number("bpm", tags["tempo_bpm"])
    return Note(captions=tuple(captions), tags=tags)


def _id3_texts(tags: Any, frame: str) -> list[str]:
    return [str(text) for found in tags.getall(frame) for text in found.text if str(text)]


def describe_tags(tags: dict[str, Any]) -> str | None:
    """Returns a plain caption made of the tags that say how music sounds, or `None` when there are none."""
    parts = [tags.get(name) for name in ("mood", "genre", "style", "instruments", "key")]
    words = [", ".join(map(str, part)) if isinstance(part, list | tuple) else str(part) for part in parts if part]
    if tags.get("tempo_bpm"):
        words.append(f"{_number('tempo_bpm', tags['tempo_bpm']):g} bpm")
    return ", ".join(words) or None
