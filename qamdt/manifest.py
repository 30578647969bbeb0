"""The manifest: a JSONL file with one clip of music a line.

A manifest lies at the root of the data it describes. Paths in it are relative to that root and may not leave it, so a
corpus can be moved or mounted elsewhere, and a manifest from a stranger cannot reach other files. Each preparation
step reads a manifest and writes one with more fields filled in. Every line goes through `parse_line`, so what one step
refuses no other one takes. Steps that go on over bad lines read with `scan_manifest`.
"""

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from qamdt.files import is_text, parse_json, write_json_lines
from qamdt.keyed_rows import file_identity
from qamdt.line_index import FirstPlaces
from qamdt.music import is_chord_point, parse_chord, parse_key


_BLOCK = 1 << 20
REQUIRED = ("id", "path", "duration_in_s")
_NUMBERS = ("start_in_s", "duration_in_s", "quality_score", "quality_frame_rate", "tempo_bpm", "first_beat_in_s")
_STRINGS = ("id", "path", "source", "license")
_OPTIONAL_STRINGS = ("quality_scorer", "time_signature", "key")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One clip of a manifest.

    Args:
        id: Name of the clip, unique in its manifest.
        path: Audio file, relative to the manifest's folder, with forward slashes.
        duration_in_s: Length of the clip; `None`, to the end of its file, only where a reader does not require it.
        start_in_s: Where the clip starts inside its file.
        captions: Sentences that describe the clip; training draws one of them.
        tags: What is known about the clip (tempo, key, instruments, …).
        source: Name of the collection that the clip comes from.
        license: Licence of the audio.
        quality_score: Mean opinion score of the whole clip, 1 to 5.
        quality_frames: Mean opinion scores along the clip, evenly spaced.
        quality_frame_rate: How many values of `quality_frames` make a second.
        quality_scorer: Who gave the scores; scores of different scorers must not be mixed.
        tempo_bpm: Beats a minute. This and the next four are `None` where they are not known for sure.
        first_beat_in_s: When the first beat of a bar falls, in seconds after the clip's start.
        time_signature: Beats to a bar and what counts as one, such as `"3/4"`.
        key: Tonic and mode, such as `"A minor"`.
        chords: `(second, symbol)` where each chord begins, such as `(0.0, "Am7")`, rising.
        extra: Fields of other steps, kept as they are.
    """

    id: str
    path: str
    duration_in_s: float | None
    start_in_s: float = 0.0
    captions: tuple[str, ...] = ()
    tags: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    license: str = ""
    quality_score: float | None = None
    quality_frames: tuple[float, ...] | None = None
    quality_frame_rate: float | None = None
    quality_scorer: str | None = None
    tempo_bpm: float | None = None
    first_beat_in_s: float | None = None
    time_signature: str | None = None
    key: str | None = None
    chords: tuple[tuple[float, str], ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        _check_types(self)
        path = PurePosixPath(self.path)
        if not self.path or path.is_absolute() or ".." in path.parts or "\\" in self.path or "\0" in self.path:
            raise ValueError(
                f"`path` must be relative and stay inside the manifest's folder, got {self.path!r}; "
                "move the audio below the manifest and name it from there."
            )
        if (self.duration_in_s is not None and self.duration_in_s <= 0) or self.start_in_s < 0:
            raise ValueError(
                f"clip {self.id!r} must have `duration_in_s` > 0 and `start_in_s` >= 0, "
                f"got {self.duration_in_s} and {self.start_in_s}."
            )
        if self.quality_score is not None and not 1.0 <= self.quality_score <= 5.0:
            raise ValueError(
                f"`quality_score` of clip {self.id!r} must lie between 1 and 5, got {self.quality_score}."
            )
        if self.quality_frames is not None and (not self.quality_frames or not (self.quality_frame_rate or 0) > 0):
            raise ValueError(
                f"clip {self.id!r} has `quality_frames` that are empty or lack a `quality_frame_rate` above zero."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, required: tuple[str, ...] = REQUIRED) -> "Record":
        """Builds a record from one decoded line; see `parse_line`."""
        known = _known_fields()
        arguments = {key: value for key, value in values.items() if key in known and value is not None}
        if missing := sorted(set(required) - arguments.keys()):
            raise ValueError(
                f"the fields {missing} are missing; a record needs {', '.join(f'`{n}`' for n in required)}."
            )
        arguments.setdefault("id", arguments["path"])
        arguments.setdefault("duration_in_s", None)
        for key in ("captions", "quality_frames", "chords"):
            if isinstance(arguments.get(key), list):
                arguments[key] = tuple(tuple(item) if isinstance(item, list) else item for item in arguments[key])
        return cls(**arguments, extra={key: value for key, value in values.items() if key not in known})

    def to_dict(self) -> dict[str, Any]:
        """Returns what one line holds: the fields that are set, then the extra ones."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {key: value for key, value in values.items() if value is not None} | self.extra


@dataclass(frozen=True, kw_only=True)
class ManifestLine:
    """One line of a manifest that is not empty: a clip, or what is wrong with it.

    Args:
        number: Number of the line, from 1.
        offset: Where the line begins, in bytes.
        text: The line, with its newline.
        record: The clip, `None` where the line describes none.
        fault: What is wrong with the line, `None` where nothing is.
    """

    number: int
    offset: int
    text: bytes
    record: Record | None = None
    fault: str | None = None


def scan_manifest(path: str | Path, *, required: tuple[str, ...] = REQUIRED) -> Iterator[ManifestLine]:
    """Yields the lines of a manifest one by one, bad ones too, so that a step can list those and do the rest.

    Args:
        path: The JSONL file.
        required: Fields that a clip must have; see `parse_line`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest at {str(path)!r}; give the path of a JSONL file.")
    with path.open("rb") as file, path.open("rb") as earlier:

        def read_id(offset: int) -> str | None:
            earlier.seek(offset)
            return parse_line(earlier.readline(), required=required).id

        places, offset = FirstPlaces(read_id), 0
        for number, text in enumerate(file, start=1):
            start, offset = offset, offset + len(text)
            if not text.strip():
                continue
            try:
                record = parse_line(text, required=required)
                first = places.find_or_add(record.id, start)
                if first is not None:
                    line = _line_number(path, first)
                    raise ValueError(f"the id {record.id!r} was used in line {line} already; ids must be unique.")
            except ValueError as error:
                yield ManifestLine(number=number, offset=start, text=text, fault=str(error))
                continue
            yield ManifestLine(number=number, offset=start, text=text, record=record)


def _line_number(path: Path, offset: int) -> int:
    """Returns the number of the line that begins at `offset`, from 1."""
    with path.open("rb") as file:
        blocks = iter(lambda: file.read(min(_BLOCK, offset - file.tell())), b"")
        return 1 + sum(block.count(b"\n") for block in blocks)


def parse_line(text: bytes, *, required: tuple[str, ...] = REQUIRED) -> Record:
    """Reads one line of a manifest; fields that `Record` does not know land in its `extra`, and null is no value.

    Args:
        text: The line.
        required: Fields that it must have, `path` among them. Where it lacks the others, its id is the path and its
            clip lasts to the end of the file.

    Raises:
        ValueError: The line describes no clip; the message says why.
    """
    try:
        values = parse_json(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, got {str(values)[:60]!r}.")
    if b"\\u" in text and not is_text(json.dumps(values, ensure_ascii=False)):
        raise ValueError("the line holds half of a surrogate pair, which is no character.")
    return Record.from_dict(values, required=required)


def iterate_manifest(path: str | Path) -> Iterator[Record]:
    """Yields the clips of a manifest one by one.

    Raises:
        ValueError: A line describes no clip; the message names it by its number.
    """
    for line in scan_manifest(path):
        if line.record is None:
            raise ValueError(f"{path}, line {line.number}: {line.fault}")
        yield line.record


def read_manifest(path: str | Path) -> list[Record]:
    """Reads a whole manifest; see `iterate_manifest`."""
    return list(iterate_manifest(path))


def write_manifest(path: str | Path, records: Iterable[Record]) -> None:
    """Writes a manifest all at once: the old file stays until the new one is whole."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, (record.to_dict() for record in records))


def resolve_clip_path(manifest_path: str | Path, record: Record) -> Path:
    """Returns where the audio of `record` lies, refusing symbolic links that lead out of the manifest's folder."""
    root = os.path.dirname(os.path.realpath(manifest_path))
    path = os.path.join(root, record.path)
    if not os.path.realpath(path).startswith(os.path.join(root, "")):
        raise ValueError(f"clip {record.id!r}: {record.path!r} is a link that leads out of {root!r}.")
    return Path(path)


def clip_identity(manifest_path: str | Path, record: Record) -> list:
    """Returns by what the sound of a clip is known: while it is the same, what was made of it holds.

    That is its path, size and time of change of the file (nothing where there is none), and the span inside it.
    """
    try:
        file = file_identity(os.path.join(os.path.dirname(manifest_path), record.path))
    except (OSError, ValueError):
        file = None
    return [record.path, file, record.start_in_s, record.duration_in_s]


@functools.cache
def _known_fields() -> frozenset[str]:
    return frozenset(field.name for field in fields(Record)) - {"extra"}


def _check_types(record: Record) -> None:
    for name in _STRINGS + _OPTIONAL_STRINGS:
        value = getattr(record, name)
        if not isinstance(value, str) and not (name in _OPTIONAL_STRINGS and value is None):
            raise ValueError(f"`{name}` must be a string, got {value!r}.")
        if value is not None and not is_text(value):
            raise ValueError(f"`{name}` must be text in UTF-8, got {value!r}; rename the file, or mend the text.")
    for name in _NUMBERS:
        value = getattr(record, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and abs(value) < 1e308) and not (name != "start_in_s" and value is None):
            raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
    if isinstance(record.captions, str):
        raise ValueError(f"`captions` must be a list of strings, got a string; write it as [{record.captions!r}].")
    if not isinstance(record.captions, tuple) or not all(isinstance(caption, str) for caption in record.captions):
        raise ValueError(f"`captions` must be a list of strings, got {record.captions!r}.")
    if not all(map(is_text, record.captions)):
        raise ValueError(f"`captions` must be text in UTF-8, got {record.captions!r}.")
    if record.quality_frames is not None and not (
        isinstance(record.quality_frames, tuple)
        and all(type(score) in (int, float) and 1.0 <= score <= 5.0 for score in record.quality_frames)
    ):
        raise ValueError(f"`quality_frames` of clip {record.id!r} must be a list of numbers between 1 and 5.")
    if not isinstance(record.tags, dict):
        raise ValueError(f"`tags` must be an object, got {record.tags!r}.")
    _check_music(record)


def _check_music(record: Record) -> None:
    if record.tempo_bpm is not None and record.tempo_bpm <= 0:
        raise ValueError(f"`tempo_bpm` must be above 0, or null where it is unknown, got {record.tempo_bpm}.")
    if record.time_signature is not None and not re.fullmatch(r"[1-9]\d?/(?:1|2|4|8|16)", record.time_signature):
        raise ValueError(f'`time_signature` must read like "3/4", or null, got {record.time_signature!r}.')
    if record.key is not None:
        parse_key(record.key)
    if record.chords is None:
        return
    if not isinstance(record.chords, tuple) or not all(is_chord_point(point) for point in record.chords):
        raise ValueError(f"`chords` must be a list of [second, symbol] pairs, got {record.chords!r}.")
    if any(later[0] <= earlier[0] for earlier, later in pairwise(record.chords)):
        raise ValueError(f"`chords` must have rising seconds, got {[second for second, _ in record.chords]}.")
    for _, symbol in record.chords:
        parse_chord(symbol)
