"""What a clip was asked to be: from the record beside it, from a manifest, or from its prompt alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.clips import record_path
from pipelines.quality_argument import Quality, is_number, read_curve
from pipelines.request import GenerationRequest
from qamdt.files import read_json, read_text_lines
from qamdt.keyed_rows import make_key
from qamdt.manifest import Record, scan_manifest
from qamdt.music import Music
from qamdt.prompt_music import read_prompt
from qamdt.quality_words import QUALITY_WORDS
from qamdt.training.dataset import known_music
from whisq.ratings import Fault
from whisq.scoring.clips import Clip, list_clips


# Ten that the training music often has alone.
INSTRUMENTS = (
    "piano",
    "nylon guitar",
    "electric piano",
    "distorted guitar",
    "church organ",
    "choir",
    "strings",
    "harpsichord",
    "harp",
    "cello",
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a clip should be; `None` where nothing is asked.

    Args:
        pair: Names the clips that differ in quality alone.
        quality: What was asked for, as a request has it; of a manifest's clip its score, or the curve that is known.
        text: The prompt.
        instrument: Name of the only instrument.
        tempo_bpm: Beats a minute that were asked for.
        key: The key that was asked for, such as "Bb major".
        music: All that the model was told to play, planned things too, or that is known of a rendered clip.
    """

    pair: str
    quality: Quality
    text: str | None
    instrument: str | None
    tempo_bpm: float | None
    key: str | None
    music: Music | None = None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Clips with what each should be, and what could not be read of their list.

    Args:
        name: Folder or manifest.
        clips: The clips.
        wanted: What each should be.
        faults: Lines and records that say nothing.
    """

    name: str
    clips: list[Clip]
    wanted: list[Wanted]
    faults: list[Fault]


def open_collection(place: Path, *, prompts: Path | None = None, tags: Mapping[str, Any] | None = None) -> Collection:
    """Lists the clips of a folder or a manifest.

    Args:
        place: Folder of sound files, each with its record beside it or not, or a manifest.
        prompts: Prompts of clips, which take the place of others: a clip's id, a tab and its prompt a line; or a prompt
            a line, for clips that `qamdt generate --prompts` named by the number of the line.
        tags: Only clips of the manifest whose tags have these values.

    Raises:
        FileNotFoundError: There is no such place.
        ValueError: It holds no clip, or none with these tags.
    """
    if not place.is_dir() and place.suffix.lower() != ".jsonl":
        kind = "which is neither" if place.exists() else "which does not exist"
        raise FileNotFoundError(
            f"expected a folder of sound files or a manifest (.jsonl), got {str(place)!r}, {kind}."
        )
    if place.is_dir() and tags:
        raise ValueError(
            f"tags are read from a manifest, and {str(place)!r} is a folder; it cannot be asked for {tags}."
        )
    table, faults = list_clips([place])
    clips = list(table)
    if place.is_dir():
        wanted = [_wanted_beside(clip, faults) for clip in clips]
    else:
        known = dict(_read_known(place, tags or {}))
        clips = [clip for clip in clips if clip.id in known]
        wanted = [known[clip.id] for clip in clips]
    if not clips:
        raise ValueError(f"no clip of {str(place)!r} has the tags {dict(tags)}.")
    if prompts is not None:
        texts, more = match_prompts(clips, prompts)
        faults += more
        wanted = [
            replace(wanted_of_text(texts[clip.id]), pair=some.pair, quality=some.quality) if clip.id in texts else some
            for clip, some in zip(clips, wanted, strict=True)
        ]
    clips = [replace(clip, prompt=some.text) for clip, some in zip(clips, wanted, strict=True)]
    return Collection(name=str(place), clips=clips, wanted=wanted, faults=faults)


def _wanted_beside(clip: Clip, faults: list[Fault]) -> Wanted:
    """Reads the record beside a sound file; a clip without one is asked nothing."""
    path = record_path(clip.path)
    if not path.is_file():
        return Wanted(pair=clip.id, quality=None, text=None, instrument=None, tempo_bpm=None, key=None)
    try:
        request = GenerationRequest.load(path)
        values = read_json(path).get("music")
        music = None if values is None else Music(**{**values, "chords": _chords(values["chords"])})
    except (ValueError, KeyError, TypeError) as error:
        faults.append(Fault(file=path.name, line=None, error=f"no record of a clip: {error}"))
        return Wanted(pair=clip.id, quality=None, text=None, instrument=None, tempo_bpm=None, key=None)
    return wanted_of_request(request, music)


def _chords(chords: Sequence | None) -> tuple[tuple[float, str], ...] | None:
    return None if chords is None else tuple((second, symbol) for second, symbol in chords)


def wanted_of_request(request: GenerationRequest, music: Music | None) -> Wanted:
    """What a request asks for; arguments count before the prompt."""
    said = wanted_of_text(request.prompt)
    told = music or Music(
        tempo_bpm=request.bpm or said.tempo_bpm,
        first_beat_in_s=0.0,
        time_signature=request.time_signature,
        key=request.key or said.key,
    )
    pair = replace(request, quality=None, best_of=1, best_by=None, scorer=None).to_dict()
    return replace(
        said,
        pair=f"{make_key(pair):016x}",
        quality=request.quality,
        tempo_bpm=request.bpm or said.tempo_bpm,
        key=request.key or said.key,
        music=told,
    )


def wanted_of_text(text: str) -> Wanted:
    """What a prompt asks for."""
    said = read_prompt(text)
    # "electric piano" is not asked for a piano too.
    named = [name for name in sorted(INSTRUMENTS, key=len, reverse=True) if re.search(rf"\b{name}\b", text.lower())]
    named = [name for number, name in enumerate(named) if not any(name in longer for longer in named[:number])]
    music = Music(
        tempo_bpm=said.tempo_bpm, first_beat_in_s=0.0, time_signature=said.time_signature or "4/4", key=said.key
    )
    return Wanted(
        pair=text,
        quality=None,
        text=text,
        instrument=named[0] if len(named) == 1 else None,
        tempo_bpm=said.tempo_bpm,
        key=said.key,
        music=music,
    )


def wanted_of_record(record: Record) -> Wanted:
    """What is known of a clip of a manifest; scores that WhisQ gave are its own opinion, and no truth to compare with."""
    is_known = record.quality_score is not None and "whisq" not in (record.quality_scorer or "").lower()
    quality = record.quality_score if is_known else None
    if is_known and record.quality_frames is not None and np.ptp(record.quality_frames) > 0.5:
        seconds = (np.arange(len(record.quality_frames)) + 0.5) / record.quality_frame_rate
        quality = tuple(zip(seconds.tolist(), record.quality_frames, strict=True))
    instruments = record.tags.get("instruments") or ()
    caption = record.extra.get("caption") or next(iter(record.captions), None)
    return Wanted(
        pair=str(record.tags.get("piece_id", record.id)),
        quality=quality,
        text=caption,
        instrument=str(instruments[0]) if isinstance(instruments, list) and len(instruments) == 1 else None,
        tempo_bpm=record.tempo_bpm,
        key=record.key,
        music=known_music(record),
    )


def _read_known(manifest: Path, tags: Mapping[str, Any]) -> Iterator[tuple[str, Wanted]]:
    """Yields what is known of each clip that has the tags and whose line is good."""
    for line in scan_manifest(manifest, required=("path",)):
        if line.record is not None and all(line.record.tags.get(name) == value for name, value in tags.items()):
            yield line.record.id, wanted_of_record(line.record)


def match_prompts(clips: Sequence[Clip], prompts: Path) -> tuple[dict[str, str], list[Fault]]:
    """Gives clips the prompts of a file.

    Returns:
        Prompts by the ids of clips, and the lines that no clip belongs to.
    """
    if not prompts.is_file():
        raise FileNotFoundError(f"`prompts` must be a file, got {str(prompts)!r}, which does not exist.")
    by_name: dict[str, list[str]] = {}
    for clip in clips:
        for name in {clip.id, clip.path.name, clip.path.stem, clip.path.stem.partition("-")[0]}:
            by_name.setdefault(name, []).append(clip.id)
    texts: dict[str, str] = {}
    faults = []
    for number, line in enumerate(read_text_lines(prompts), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, tab, text = line.partition("\t")
        ids = by_name.get(name.strip() if tab else f"{number:04d}", [])
        text = (text if tab else name).strip()
        if not ids or not text:
            reason = f"no clip belongs to the prompt {line.strip()!r}" if text else "the prompt is empty"
            faults.append(Fault(file=prompts.name, line=number, error=reason))
        texts |= dict.fromkeys(ids, text) if text else {}
    return texts, faults


def asked_score(quality: Quality) -> float | None:
    """A quality as one number that rises with it; `None` of a curve and of nothing."""
    if isinstance(quality, str):
        return float(QUALITY_WORDS[quality].level)
    return float(quality) if is_number(quality) else None


def asked_curve(quality: Quality, times_in_s: np.ndarray, duration_in_s: float) -> np.ndarray | None:
    """The scores that a curve asks for at some times; `None` where no curve is asked for."""
    if quality is None or isinstance(quality, str) or is_number(quality):
        return None
    seconds, scores = read_curve(quality)
    if seconds is None:
        seconds = np.linspace(0, duration_in_s, len(scores))
    return np.interp(times_in_s, seconds, scores)
