"""What is to be scored: the clips of folders, patterns, manifests, lists of files and single files, with their prompts."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from qamdt.files import printable, read_text_lines
from qamdt.manifest import resolve_clip_path, scan_manifest
from qamdt.sound_files import list_sound_files, measure_length
from whisq.ratings import Fault
from whisq.windows import WINDOW_IN_S


LIST_SUFFIXES = (".txt", ".lst", ".tsv")


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


def list_clips(inputs: Sequence[str | Path], *, prompts: str | Path | None = None) -> tuple[list[Clip], list[Fault]]:
    """Finds the clips that the inputs name, in an order that depends on their names alone.

    Args:
        inputs: Each a folder (searched to the bottom; ids are paths below it), a pattern with `*` or `**`, a manifest
            (`.jsonl`), a list with a file per line, after a tab its prompt (`.txt`, `.lst`, `.tsv`), or a sound file.
        prompts: File with a clip's id, a tab and its prompt per line, which take the place of other prompts.

    Returns:
        The clips, and the lines of manifests that describe none.
    """
    faults: list[Fault] = []
    clips = [clip for given in inputs for clip in _list_input(str(given), faults)]
    place: dict[str, Path] = {}
    for clip in clips:
        if clip.id in place:
            raise ValueError(
                f"two clips have the id {clip.id!r}, {str(place[clip.id])!r} and {str(clip.path)!r}; name each clip "
                "once, or write a manifest that gives them ids."
            )
        place[clip.id] = clip.path
    if not clips:
        details = f" The first of {len(faults)} faults: {faults[0]}" if faults else ""
        raise ValueError(f"there is nothing to score in {', '.join(map(repr, map(str, inputs)))}.{details}")
    return clips if prompts is None else _give_prompts(clips, Path(prompts)), faults


def probe_durations(clips: Sequence[Clip]) -> list[Clip]:
    """Fills in how long clips are, as far as their files can be decoded, where that is not known or much.

    One whose file cannot be read is taken as a whole; reading it will tell why.
    """
    return [_probe_duration(clip) for clip in tqdm(clips, desc="lengths", unit="clip", leave=False, disable=None)]


def _probe_duration(clip: Clip) -> Clip:
    is_short = (
        clip.duration_in_s is not None and clip.duration_in_s <= WINDOW_IN_S
    )  # one window, whatever the file holds
    if is_short or clip.fault is not None:
        return clip
    try:
        length = measure_length(clip.path)
    except (OSError, ValueError):
        return replace(clip, duration_in_s=None)
    left_in_s = max(length.duration_in_s - clip.start_in_s, 0.0)
    if clip.duration_in_s is None:
        return replace(clip, duration_in_s=left_in_s, missing_in_s=length.missing_in_s if length.is_cut else 0.0)
    missing_in_s = max(clip.duration_in_s - left_in_s, 0.0)
    return replace(clip, duration_in_s=clip.duration_in_s - missing_in_s, missing_in_s=missing_in_s)


def _list_input(given: str, faults: list[Fault]) -> list[Clip]:
    path = Path(given)
    if path.is_dir():
        files, refused = list_sound_files(path)
        found = sorted([*((file, None) for file in files), *refused])
        return [
            Clip(id=printable(file.relative_to(path).as_posix()), path=file, source=path.name, fault=fault)
            for file, fault in found
        ]
    if path.is_file():
        if path.suffix.lower() == ".jsonl":
            return _read_clips(path, faults)
        if path.suffix.lower() in LIST_SUFFIXES:
            lines = [line.partition("\t") for line in read_text_lines(path) if line.strip()]
            return [
                Clip(
                    id=name.strip(), path=path.resolve().parent / name.strip(), prompt=prompt.strip() if tab else None
                )
                for name, tab, prompt in lines
            ]
        return [Clip(id=printable(path.as_posix()), path=path)]
    if glob.has_magic(given):
        files = sorted(Path(name) for name in glob.glob(given, recursive=True))
        return [Clip(id=printable(file.as_posix()), path=file) for file in files if file.is_file()]
    raise FileNotFoundError(
        f"`inputs` must be folders, patterns, manifests, lists or sound files, got {given!r}, which does not exist."
    )


def _read_clips(manifest: Path, faults: list[Fault]) -> list[Clip]:
    """Reads what scoring needs of a manifest; the prompt is a record's caption, or else the first of its captions."""
    clips = []
    for line in scan_manifest(manifest, required=("path",)):
        try:
            if line.record is None:
                raise ValueError(line.fault)
            record = line.record
            prompt = record.extra.get("caption") or next(iter(record.captions), None)
            if not isinstance(prompt, str | None):
                raise ValueError(f"`caption` must be a string, got {prompt!r}.")
            path = resolve_clip_path(manifest, record)
        except ValueError as error:
            faults.append(Fault(file=manifest.name, line=line.number, error=str(error)))
            continue
        clips.append(
            Clip(
                id=record.id,
                path=path,
                start_in_s=float(record.start_in_s),
                duration_in_s=None if record.duration_in_s is None else float(record.duration_in_s),
                prompt=prompt,
                source=record.source,
                place=record.path,
            )
        )
    return clips


def _give_prompts(clips: Iterable[Clip], path: Path) -> list[Clip]:
    prompts: dict[str, str] = {}
    for number, line in enumerate(read_text_lines(path), start=1):
        if not line.strip():
            continue
        name, tab, prompt = line.partition("\t")
        if not tab or name in prompts:
            raise ValueError(
                f"{path}, line {number}: expected a clip's id, a tab and its prompt, each id once, got {line[:60]!r}."
            )
        prompts[name] = prompt.strip()
    clips = [replace(clip, prompt=prompts.pop(clip.id, clip.prompt)) for clip in clips]
    if prompts:
        raise ValueError(f"{path} has prompts for {len(prompts)} clips that are not scored, such as {min(prompts)!r}.")
    return clips
