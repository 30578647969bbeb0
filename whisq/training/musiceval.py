"""Reads MusicEval in the layout of the AudioMOS 2025 challenge, track 1, as it was released.

    wav/audiomos2025-track1-S002_P044.wav     the clip that system S002 made from prompt P044
    sets/{train,dev,test}_mos_list.txt        name.wav,overall,textual: means of five persons, no header
    person_mos/{...}_person_mos.txt           name.wav,person,overall,textual: their single ratings (optional)
    system_mos/system_mos_*.csv               S002,overall,textual: means of whole systems (optional)
    prompt_info.txt                           id, text with a tab between: the text of P044
    demo_prompt_info.txt                      the same with whole file names, for systems known by their demo pages only

A row that cannot be used is left out and listed; a clip whose prompt is unknown still counts for its overall quality.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from qamdt.files import read_text_lines
from qamdt.quality import MAX_SCORE, MIN_SCORE
from whisq.ratings import SPLITS, Fault, RatedClip, RatedMusic


# These systems could not be run by the organisers. Their clips come from demo pages, so their prompt numbers mean
# something else than those in `prompt_info.txt`.
DEMO_SYSTEMS = ("S001", "S006", "S013", "S017", "S018", "S033")
_NAME = re.compile(r"(?:^|-)(S\d+)_(P\d+)$")
# A listed mean has one decimal.
_MEAN_TOLERANCE = 0.051


def read_musiceval(root: str | Path) -> RatedMusic:
    """Reads a release such as `MusicEval-phase1` or `MusicEval-full`.

    Args:
        root: The folder that holds `wav` and `sets`.

    Raises:
        FileNotFoundError: The folder lacks the training list or the prompts.
    """
    root = Path(root)
    train_list = root / "sets" / "train_mos_list.txt"
    if not train_list.is_file():
        raise FileNotFoundError(
            f"{str(train_list)!r} does not exist; `root` must be the folder of a MusicEval release, which holds "
            f"wav/, sets/ and prompt_info.txt, got {str(root)!r}."
        )
    faults: list[Fault] = []
    prompts = _read_prompts(root / "prompt_info.txt", faults)
    demo_path = root / "demo_prompt_info.txt"
    demo_prompts = _read_prompts(demo_path, faults) if demo_path.is_file() else {}
    demo_prompts = {_stem(name): text for name, text in demo_prompts.items()}

    splits: dict[str, list[RatedClip]] = {split: [] for split in SPLITS}
    seen: dict[str, str] = {}
    for split in SPLITS:
        path = root / "sets" / f"{split}_mos_list.txt"
        if path.is_file():
            splits[split] = list(_read_list(root, path, prompts, demo_prompts, seen, faults))
    if not splits["train"]:
        details = f" The first of {len(faults)} faults: {faults[0]}" if faults else ""
        raise ValueError(f"no row of {str(train_list)!r} could be used.{details}")

    clips = {clip.id: clip for split in SPLITS for clip in splits[split]}
    person_ratings = _read_person_ratings(root, clips, faults)
    return RatedMusic(
        splits=splits,
        faults=faults,
        system_ratings=_read_system_ratings(root, faults),
        person_ratings=person_ratings,
    )


def parse_name(name: str) -> tuple[str, str]:
    """Returns the system and the prompt number in a file name: ("S002", "P044")."""
    match = _NAME.search(_stem(name))
    if match is None:
        raise ValueError(f"a file name must end in a system and a prompt such as S002_P044.wav, got {name!r}.")
    return match[1], match[2]


def _stem(name: str) -> str:
    return name.removesuffix(".wav")


def _read_list(
    root: Path,
    path: Path,
    prompts: dict[str, str],
    demo_prompts: dict[str, str],
    seen: dict[str, str],
    faults: list[Fault],
) -> Iterator[RatedClip]:
    """Yields the clips of one list; `seen` says where each clip was named first."""
    relative = path.relative_to(root).as_posix()
    for number, fields in _read_rows(path):
        try:
            _check_num_fields(fields, ("name", "overall", "textual"))
            clip_id = _stem(fields[0])
            system, prompt_id = parse_name(fields[0])
            overall_quality, text_alignment = (_parse_rating(field) for field in fields[1:])
            wav = _resolve_wav(root, clip_id)
            if clip_id in seen:
                raise ValueError(f"{clip_id} is listed in {seen[clip_id]} already; a clip must have one row.")
        except (ValueError, FileNotFoundError) as error:
            faults.append(Fault(file=relative, line=number, error=str(error)))
            continue
        seen[clip_id] = f"{relative}, line {number},"
        try:
            prompt = _find_prompt(clip_id, system, prompt_id, prompts, demo_prompts)
        except KeyError as error:
            faults.append(Fault(file=relative, line=number, error=error.args[0]))
            prompt = None
        yield RatedClip(
            id=clip_id,
            path=wav,
            system=system,
            overall_quality=overall_quality,
            prompt=prompt,
            text_alignment=None if prompt is None else text_alignment,
        )


def _find_prompt(
    clip_id: str, system: str, prompt_id: str, prompts: dict[str, str], demo_prompts: dict[str, str]
) -> str:
    if clip_id in demo_prompts:
        return demo_prompts[clip_id]
    if system in DEMO_SYSTEMS:
        raise KeyError(f"{clip_id} has no prompt in demo_prompt_info.txt; only its overall quality is used.")
    if prompt_id not in prompts:
        raise KeyError(f"{prompt_id} has no text in prompt_info.txt; only the overall quality of {clip_id} is used.")
    return prompts[prompt_id]


def _resolve_wav(root: Path, clip_id: str) -> Path:
    if PurePosixPath(clip_id).name != clip_id:
        raise ValueError(f"a file name must not lead to another folder, got {clip_id!r}.")
    wav = root / "wav" / f"{clip_id}.wav"
    if not wav.is_file():
        raise FileNotFoundError(f"wav/{clip_id}.wav does not exist.")
    return wav


def _read_prompts(path: Path, faults: list[Fault]) -> dict[str, str]:
    """Reads a file of `id`, tab, `text`; its header is not a prompt."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} does not exist; without it no prompt has a text.")
    prompts: dict[str, str] = {}
    for number, line in _read_lines(path):
        key, tab, text = (part.strip(" ") for part in line.partition("\t"))
        if number == 1 and key == "id":
            continue
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1].replace('""', '"').strip()  # quoted as spreadsheets do
        if not (key and tab and text):
            error = f"a row must read id, tab, text, got {line[:60]!r}."
        elif prompts.get(key, text) != text:
            error = f"{key} has another text already, {prompts[key][:60]!r}."
        else:
            prompts[key] = text
            continue
        faults.append(Fault(file=path.name, line=number, error=error))
    return prompts


def _read_person_ratings(
    root: Path, clips: dict[str, RatedClip], faults: list[Fault]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Reads the single ratings and compares their means with the listed ones."""
    ratings: dict[str, dict[str, tuple[float, float]]] = {}
    for path in sorted((*root.glob("person_mos/*.txt"), *root.glob("sets/*person_mos*.txt"))):
        relative = path.relative_to(root).as_posix()
        for number, fields in _read_rows(path):
            try:
                _check_num_fields(fields, ("name", "person", "overall", "textual"))
                clip_id, person = _stem(fields[0]), fields[1]
                if clip_id not in clips:
                    raise ValueError(f"{clip_id} is in none of the lists.")
                if person in ratings.get(clip_id, {}):
                    raise ValueError(f"person {person!r} rated {clip_id} already.")
                pair = (_parse_rating(fields[2]), _parse_rating(fields[3]))
            except ValueError as error:
                faults.append(Fault(file=relative, line=number, error=str(error)))
                continue
            ratings.setdefault(clip_id, {})[person] = pair
    for clip_id, persons in ratings.items():
        mean = math.fsum(pair[0] for pair in persons.values()) / len(persons)
        listed = clips[clip_id].overall_quality
        if abs(mean - listed) > _MEAN_TOLERANCE:
            error = f"the {len(persons)} ratings of {clip_id} average {mean:.2f}, but its list says {listed:.2f}."
            faults.append(Fault(file="person_mos", line=None, error=error))
    return ratings


def _read_system_ratings(root: Path, faults: list[Fault]) -> dict[str, tuple[float, float]]:
    ratings: dict[str, tuple[float, float]] = {}
    for path in sorted(root.glob("system_mos/*.csv")):
        for number, fields in _read_rows(path):
            try:
                _check_num_fields(fields, ("system", "overall", "textual"))
                ratings[fields[0]] = (_parse_rating(fields[1]), _parse_rating(fields[2]))
            except ValueError as error:
                faults.append(Fault(file=path.relative_to(root).as_posix(), line=number, error=str(error)))
    return ratings


def _read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields line numbers and the fields between commas."""
    for number, line in _read_lines(path):
        yield number, [field.strip() for field in line.split(",")]


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line numbers and lines, without empty ones."""
    for number, line in enumerate(read_text_lines(path), start=1):
        if line.strip():
            yield number, line


def _check_num_fields(fields: list[str], names: tuple[str, ...]) -> None:
    if len(fields) != len(names):
        raise ValueError(f"a row must read {','.join(names)}, got {','.join(fields)[:80]!r}.")


def _parse_rating(text: str) -> float:
    try:
        rating = float(text)
    except ValueError as error:
        raise ValueError(f"a rating must be a number, got {text!r}.") from error
    if not MIN_SCORE <= rating <= MAX_SCORE:
        raise ValueError(f"a rating must lie between 1 and 5, got {text!r}.")
    return rating
