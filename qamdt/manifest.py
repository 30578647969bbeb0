"""The manifest: a JSONL file with one clip of music a line.

A manifest lies at the root of the data it describes. Paths in it are relative to that root and may not leave it, so a
corpus can be moved or mounted elsewhere, and a manifest from a stranger cannot reach other files. Each preparation
step reads a manifest and writes one with more fields filled in.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any


_NUMBERS = ("start_in_s", "duration_in_s", "quality_score", "quality_frame_rate", "tempo_bpm", "first_beat_in_s")
_STRINGS = ("id", "path", "source", "license", "quality_scorer", "time_signature", "key")
_OPTIONAL = ("quality_score", "quality_frame_rate", "quality_scorer", "tempo_bpm", "first_beat_in_s", "time_signature")
_OPTIONAL += ("key",)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One clip of a manifest.

    Args:
        id: Name of the clip, unique in its manifest.
        path: Audio file, relative to the manifest's folder, with forward slashes.
        duration_in_s: Length of the clip.
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
    duration_in_s: float
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
        if not self.path or path.is_absolute() or ".." in path.parts or "\\" in self.path:
            raise ValueError(
                f"`path` must be relative and stay inside the manifest's folder, got {self.path!r}; "
                "move the audio below the manifest and name it from there."
            )
        if self.duration_in_s <= 0 or self.start_in_s < 0:
            raise ValueError(
                f"clip {self.id!r} must have `duration_in_s` > 0 and `start_in_s` >= 0, "
                f"got {self.duration_in_s} and {self.start_in_s}."
            )
        if self.quality_score is not None and not 1.0 <= self.quality_score <= 5.0:
            raise ValueError(
                f"`quality_score` of clip {self.id!r} must lie between 1 and 5, got {self.quality_score}."
            )
        if self.quality_frames is not None and (not self.quality_frames or not self.quality_frame_rate):
            raise ValueError(
                f"clip {self.id!r} has `quality_frames` that are empty or lack a `quality_frame_rate` above zero."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Record":
        """Builds a record from one decoded line; fields this class does not know land in `extra`."""
        known = {f.name for f in fields(cls)} - {"extra"}
        missing = {"id", "path", "duration_in_s"} - values.keys()
        if missing:
            raise ValueError(
                f"the fields {sorted(missing)} are missing; a record needs `id`, `path`, `duration_in_s`."
            )
        arguments = {key: value for key, value in values.items() if key in known}
        for key in ("captions", "quality_frames", "chords"):
            if isinstance(arguments.get(key), list):
                arguments[key] = tuple(tuple(item) if isinstance(item, list) else item for item in arguments[key])
        return cls(**arguments, extra={key: value for key, value in values.items() if key not in known})

    def to_dict(self) -> dict[str, Any]:
        """Returns what one line holds: the fields that are set, then the extra ones."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {key: value for key, value in values.items() if value is not None} | self.extra


def iterate_manifest(path: str | Path, *, allow_torn_tail: bool = False) -> Iterator[Record]:
    """Yields the records of a manifest one by one.

    Args:
        path: The JSONL file.
        allow_torn_tail: Whether a last line without its newline, left by a process that was killed, is passed over.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest at {str(path)!r}; give the path of a JSONL file.")
    line_of_id: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if allow_torn_tail and not line.endswith("\n"):
                return
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                if not isinstance(values, dict):
                    raise ValueError(f"expected a JSON object, got {line.strip()[:60]!r}.")
                record = Record.from_dict(values)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if record.id in line_of_id:
                raise ValueError(
                    f"{path}, line {number}: the id {record.id!r} was used in line {line_of_id[record.id]} already; "
                    "ids must be unique."
                )
            line_of_id[record.id] = number
            yield record


def read_manifest(path: str | Path, *, allow_torn_tail: bool = False) -> list[Record]:
    """Reads a whole manifest; see `iterate_manifest`."""
    return list(iterate_manifest(path, allow_torn_tail=allow_torn_tail))


def write_manifest(path: str | Path, records: Iterable[Record]) -> None:
    """Writes a manifest all at once: the old file stays until the new one is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(format_record(record))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def format_record(record: Record) -> str:
    """Returns the line of a manifest that holds `record`, with its newline."""
    return json.dumps(record.to_dict(), ensure_ascii=False) + "\n"


def resolve_clip_path(manifest_path: str | Path, record: Record) -> Path:
    """Returns where the audio of `record` lies, refusing symbolic links that lead out of the manifest's folder."""
    root = Path(manifest_path).resolve().parent
    path = root / record.path
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"clip {record.id!r}: {record.path!r} is a link that leads out of {str(root)!r}.")
    return path


def _check_types(record: Record) -> None:
    for name in _STRINGS:
        value = getattr(record, name)
        if not isinstance(value, str) and not (name in _OPTIONAL and value is None):
            raise ValueError(f"`{name}` must be a string, got {value!r}.")
    for name in _NUMBERS:
        value = getattr(record, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number and not (name in _OPTIONAL and value is None):
            raise ValueError(f"`{name}` must be a number, got {value!r}.")
    if not isinstance(record.captions, tuple) or not all(isinstance(caption, str) for caption in record.captions):
        raise ValueError(f"`captions` must be a list of strings, got {record.captions!r}.")
    if record.quality_frames is not None and not (
        isinstance(record.quality_frames, tuple)
        and all(isinstance(score, (int, float)) and 1.0 <= score <= 5.0 for score in record.quality_frames)
    ):
        raise ValueError(f"`quality_frames` of clip {record.id!r} must be a list of numbers between 1 and 5.")
    if not isinstance(record.tags, dict):
        raise ValueError(f"`tags` must be an object, got {record.tags!r}.")
