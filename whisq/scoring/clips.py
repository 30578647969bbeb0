"""What is to be scored: the clips of folders, patterns, manifests, lists of files and single files, with their prompts."""

from __future__ import annotations

import glob
import math
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from qamdt.files import printable, read_text_lines
from qamdt.keyed_rows import hash_text
from qamdt.line_index import LineReader
from qamdt.manifest import scan_manifest
from qamdt.sound_files import list_sound_files, measure_length
from whisq.ratings import Fault
from whisq.scoring.clip_table import Clip, ClipTable, ManifestClips, make_clip
from whisq.windows import WINDOW_IN_S


LIST_SUFFIXES = (".txt", ".lst", ".tsv")


def list_clips(inputs: Sequence[str | Path], *, prompts: str | Path | None = None) -> tuple[ClipTable, list[Fault]]:
    """Finds the clips that the inputs name, in an order that depends on their names alone.

    Args:
        inputs: Each a folder (searched to the bottom; ids are paths below it), a pattern with `*` or `**`, a manifest
            (`.jsonl`), a list with a file per line, after a tab its prompt (`.txt`, `.lst`, `.tsv`), or a sound file.
        prompts: File with a clip's id, a tab and its prompt per line, which take the place of other prompts.

    Returns:
        The clips, and the lines of manifests that describe none.
    """
    faults: list[Fault] = []
    clips = ClipTable.join([_list_input(str(given), faults) for given in inputs])
    if not len(clips):
        details = f" The first of {len(faults)} faults: {faults[0]}" if faults else ""
        raise ValueError(f"there is nothing to score in {', '.join(map(repr, map(str, inputs)))}.{details}")
    return clips if prompts is None else _give_prompts(clips, Path(prompts)), faults


def probe_durations(clips: Sequence[Clip]) -> ClipTable:
    """Fills in how long clips are, as far as their files can be decoded, where that is not known or much.

    One whose file cannot be read is taken as a whole; reading it will tell why.
    """
    clips = ClipTable.of(clips)
    durations_in_s, missing_in_s = clips.durations_in_s.copy(), clips.missing_in_s.copy()
    # A clip of one window is read at once, whatever its file holds.
    unknown = np.flatnonzero(~(durations_in_s <= WINDOW_IN_S))
    for index in tqdm(unknown, desc="lengths", unit="clip", leave=False, disable=None):
        clip = clips[index]
        if clip.fault is None:
            durations_in_s[index], missing_in_s[index] = _probe_duration(clip)
    return replace(clips, durations_in_s=durations_in_s, missing_in_s=missing_in_s)


def _probe_duration(clip: Clip) -> tuple[float, float]:
    """Returns how long a clip is, NaN where its file cannot be read, and how much of its end is missing."""
    try:
        length = measure_length(clip.path)
    except (OSError, ValueError):
        return math.nan, clip.missing_in_s
    left_in_s = max(length.duration_in_s - clip.start_in_s, 0.0)
    if clip.duration_in_s is None:
        return left_in_s, length.missing_in_s if length.is_cut else 0.0
    missing_in_s = max(clip.duration_in_s - left_in_s, 0.0)
    return clip.duration_in_s - missing_in_s, missing_in_s


def _list_input(given: str, faults: list[Fault]) -> ClipTable:
    path = Path(given)
    if path.is_file() and path.suffix.lower() == ".jsonl":
        return _list_manifest(path, faults)
    return ClipTable.of(_list_files(given, path))


def _list_files(given: str, path: Path) -> list[Clip]:
    if path.is_dir():
        files, refused = list_sound_files(path)
        found = sorted([*((file, None) for file in files), *refused])
        return [
            Clip(id=printable(file.relative_to(path).as_posix()), path=file, source=path.name, fault=fault)
            for file, fault in found
        ]
    if path.is_file():
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


def _list_manifest(manifest: Path, faults: list[Fault]) -> ClipTable:
    """Finds the clips of a manifest, whose lines stay on disk."""
    offsets, ids, durations_in_s = array("Q"), array("Q"), array("d")
    for line in scan_manifest(manifest, required=("path",)):
        try:
            if line.record is None:
                raise ValueError(line.fault)
            clip = make_clip(line.record, manifest)
        except ValueError as error:
            faults.append(Fault(file=manifest.name, line=line.number, error=str(error)))
            continue
        offsets.append(line.offset)
        ids.append(hash_text(clip.id))
        durations_in_s.append(math.nan if clip.duration_in_s is None else clip.duration_in_s)
    return ClipTable(
        parts=(ManifestClips(manifest, LineReader(manifest, np.array(offsets, np.uint64))),),
        ids=np.array(ids, np.uint64),
        durations_in_s=np.array(durations_in_s, np.float64),
        missing_in_s=np.zeros(len(offsets)),
    )


def _give_prompts(clips: ClipTable, path: Path) -> ClipTable:
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
    foreign = sorted(name for name in prompts if not clips.has(name))
    if foreign:
        raise ValueError(f"{path} has prompts for {len(foreign)} clips that are not scored, such as {foreign[0]!r}.")
    return replace(clips, prompts=prompts)
