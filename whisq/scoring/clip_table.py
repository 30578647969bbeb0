"""The clips of a job by number: those of a manifest stay on disk, and in memory are 32 bytes of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from qamdt.keyed_rows import hash_text
from qamdt.line_index import LineReader
from qamdt.manifest import Record, parse_line, resolve_clip_path


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip of music to score.

    Args:
        id: Name of the clip, unique in a job.
        path: Sound file.
        start_in_s: Where the clip begins in its file.
        duration_in_s: Its length; the rest of the file when `None`.
        prompt: Text that the clip should follow.
        source: Name of the collection that the clip comes from.
        place: Path in its manifest, which stays the same when a collection is moved.
        missing_in_s: How much of its end its file lacks, as far as the file says; see `SoundLength`.
        fault: Why its file cannot be read, where that is known already.
    """

    id: str
    path: Path
    start_in_s: float = 0.0
    duration_in_s: float | None = None
    prompt: str | None = None
    source: str = ""
    place: str = ""
    missing_in_s: float = 0.0
    fault: str | None = None

    @property
    def has_words(self) -> bool:
        """Whether there is a prompt to read."""
        return bool(self.prompt and self.prompt.strip())


class ManifestClips(Sequence):
    """The clips of a manifest, each read when it is asked for.

    Args:
        manifest: The manifest.
        lines: The lines that describe clips.
    """

    def __init__(self, manifest: Path, lines: LineReader):
        self._manifest = manifest
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Clip:
        return make_clip(parse_line(self._lines.read(index), required=("path",)), self._manifest)


def make_clip(record: Record, manifest: Path) -> Clip:
    """Returns what scoring needs of a record; the prompt is its caption, or else the first of its captions.

    Raises:
        ValueError: The caption is no text, or the file lies outside the manifest's folder.
    """
    prompt = record.extra.get("caption") or next(iter(record.captions), None)
    if not isinstance(prompt, str | None):
        raise ValueError(f"`caption` must be a string, got {prompt!r}.")
    return Clip(
        id=record.id,
        path=resolve_clip_path(manifest, record),
        start_in_s=float(record.start_in_s),
        duration_in_s=None if record.duration_in_s is None else float(record.duration_in_s),
        prompt=prompt,
        source=record.source,
        place=record.path,
    )


@dataclass(frozen=True, kw_only=True)
class ClipTable(Sequence):
    """Clips by number, and in columns what the planning of a job needs of all of them.

    Args:
        parts: The clips, one after the other; their lengths and prompts are those below.
        ids: `hash_text` of the id of each.
        durations_in_s: Length of each, NaN where it is not known.
        missing_in_s: How much of the end of each its file lacks.
        prompts: Prompts by id, which take the place of the clips' own.
    """

    parts: tuple[Sequence[Clip], ...]
    ids: np.ndarray
    durations_in_s: np.ndarray
    missing_in_s: np.ndarray
    prompts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, clips: Sequence[Clip]) -> ClipTable:
        """Returns a table of some clips, which is these themselves if they are one."""
        if isinstance(clips, ClipTable):
            return clips
        durations = [math.nan if clip.duration_in_s is None else clip.duration_in_s for clip in clips]
        return cls(
            parts=(clips,),
            ids=np.array([hash_text(clip.id) for clip in clips], np.uint64),
            durations_in_s=np.array(durations, np.float64),
            missing_in_s=np.array([clip.missing_in_s for clip in clips], np.float64),
        )

    @classmethod
    def join(cls, tables: Iterable[ClipTable]) -> ClipTable:
        """Returns the clips of several tables as one.

        Raises:
            ValueError: Two clips have the same id.
        """
        tables = list(tables)
        joined = cls(
            parts=tuple(part for table in tables for part in table.parts),
            ids=np.concatenate([table.ids for table in tables]),
            durations_in_s=np.concatenate([table.durations_in_s for table in tables]),
            missing_in_s=np.concatenate([table.missing_in_s for table in tables]),
        )
        joined._check_ids()
        return joined

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < len(self):  # which ends an iteration, too
            raise IndexError(f"there are {len(self)} clips, and none has the number {index}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        clip, duration_in_s = self.parts[part][int(index - self._starts[part])], float(self.durations_in_s[index])
        return replace(
            clip,
            duration_in_s=None if math.isnan(duration_in_s) else duration_in_s,
            missing_in_s=float(self.missing_in_s[index]),
            prompt=self.prompts.get(clip.id, clip.prompt),
        )

    @property
    def lengths_in_s(self) -> np.ndarray:
        """Length of each clip, 0 where it is not known."""
        return np.nan_to_num(self.durations_in_s)

    def has(self, clip_id: str) -> bool:
        """Whether a clip has this id."""
        place = int(np.searchsorted(self._sorted_ids, np.uint64(hash_text(clip_id))))
        return place < len(self) and int(self._sorted_ids[place]) == hash_text(clip_id)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(part) for part in self.parts)])[:-1]

    @cached_property
    def _sorted_ids(self) -> np.ndarray:
        return np.sort(self.ids)

    def _check_ids(self) -> None:
        order = np.argsort(self.ids, kind="stable")
        is_double = self.ids[order][1:] == self.ids[order][:-1]
        for first, second in zip(order[:-1][is_double], order[1:][is_double], strict=True):
            one, other = self[first], self[second]
            if one.id == other.id:
                raise ValueError(
                    f"two clips have the id {one.id!r}, {str(one.path)!r} and {str(other.path)!r}; name each clip "
                    "once, or write a manifest that gives them ids."
                )
