"""What is to be scored: the clips of folders, patterns, manifests, lists of files and single files, with their prompts."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile
from tqdm import tqdm


AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
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
    """

    id: str
    path: Path
    start_in_s: float = 0.0
    duration_in_s: float | None = None
    prompt: str | None = None
    source: str = ""


def list_clips(inputs: Sequence[str | Path], *, prompts: str | Path | None = None) -> list[Clip]:
    """Finds the clips that the inputs name, in an order that depends on their names alone.

    Args:
        inputs: Each a folder (searched to the bottom; ids are paths below it), a pattern with `*` or `**`, a manifest
            (`.jsonl`), a list with a file per line, after a tab its prompt (`.txt`, `.lst`, `.tsv`), or a sound file.
        prompts: File with a clip's id, a tab and its prompt per line, which take the place of other prompts.
    """
    clips = [clip for given in inputs for clip in _list_input(str(given))]
    place: dict[str, Path] = {}
    for clip in clips:
        if clip.id in place:
            raise ValueError(
                f"two clips have the id {clip.id!r}, {str(place[clip.id])!r} and {str(clip.path)!r}; name each clip "
                "once, or write a manifest that gives them ids."
            )
        place[clip.id] = clip.path
    if not clips:
        raise ValueError(f"there is nothing to score in {', '.join(map(repr, map(str, inputs)))}.")
    return clips if prompts is None else _give_prompts(clips, Path(prompts))


def probe_durations(clips: Sequence[Clip]) -> list[Clip]:
    """Fills in the lengths of clips from the headers of their files; one that cannot be opened keeps its length open."""
    return [_probe_duration(clip) for clip in tqdm(clips, desc="headers", unit="clip", leave=False)]


def _probe_duration(clip: Clip) -> Clip:
    if clip.duration_in_s is not None:
        return clip
    try:
        header = soundfile.info(str(clip.path))
    except (OSError, soundfile.LibsndfileError):
        return clip  # reading the clip will fail too, and tell why
    return replace(clip, duration_in_s=max(header.frames / header.samplerate - clip.start_in_s, 0.0))


def _list_input(given: str) -> list[Clip]:
    path = Path(given)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
        return [Clip(id=file.relative_to(path).as_posix(), path=file, source=path.name) for file in files]
    if path.is_file():
        if path.suffix.lower() == ".jsonl":
            return _read_lines(path, _parse_manifest_line)
        if path.suffix.lower() in LIST_SUFFIXES:
            return _read_lines(path, _parse_list_line)
        return [Clip(id=path.as_posix(), path=path)]
    if glob.has_magic(given):
        files = sorted(Path(name) for name in glob.glob(given, recursive=True))
        return [Clip(id=file.as_posix(), path=file) for file in files if file.is_file()]
    raise FileNotFoundError(
        f"`inputs` must be folders, patterns, manifests, lists or sound files, got {given!r}, which does not exist."
    )


def _read_lines(path: Path, parse: Callable[[str, Path], Clip]) -> list[Clip]:
    """Parses every line that is not empty; a line that makes no sense is named by its number."""
    clips = []
    root = path.resolve().parent
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            clips.append(parse(line, root))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return clips


def _parse_list_line(line: str, root: Path) -> Clip:
    name, tab, prompt = line.partition("\t")
    return Clip(id=name.strip(), path=root / name.strip(), prompt=prompt.strip() if tab else None)


def _parse_manifest_line(line: str, root: Path) -> Clip:
    """Reads what scoring needs of a manifest's record; its caption, or else the first of its captions, is the prompt."""
    values = json.loads(line)
    if not isinstance(values, dict) or not isinstance(values.get("path"), str):
        raise ValueError(f"expected a JSON object with a `path`, got {line.strip()[:60]!r}.")
    relative = PurePosixPath(values["path"])
    path = root / relative
    if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(root):
        raise ValueError(f"`path` must stay inside the manifest's folder, got {values['path']!r}.")
    captions = values.get("captions") or []
    if not isinstance(captions, list):
        raise ValueError(f"`captions` must be a list of strings, got {captions!r}.")
    clip = Clip(
        id=values.get("id", values["path"]),
        path=path,
        start_in_s=_parse_seconds(values, "start_in_s") or 0.0,
        duration_in_s=_parse_seconds(values, "duration_in_s"),
        prompt=values.get("caption", captions[0] if captions else None),
        source=values.get("source", ""),
    )
    for name, value in (("id", clip.id), ("source", clip.source), ("captions", clip.prompt or "")):
        if not isinstance(value, str):
            raise ValueError(f"`{name}` must be text, got {value!r}.")
    return clip


def _parse_seconds(values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a number of seconds from 0, got {value!r}.")
    return float(value)


def _give_prompts(clips: Iterable[Clip], path: Path) -> list[Clip]:
    prompts: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
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


def _read_text(path: Path) -> str:
    """Reads a file whose lines end in a line feed; captions may hold the other characters that `splitlines` splits at."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} must be a UTF-8 text file: {error}") from error
