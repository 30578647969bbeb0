"""What the scorer learns from and what it says: ratings of clips, by people and by models, whatever their files."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qamdt.files import write_json_lines


SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class RatedClip:
    """One clip of music with a mean rating of its sound and of how well it follows its prompt.

    Args:
        id: Name of the clip, unique in its collection.
        path: Sound file.
        system: What made the clip; clips of one system share their flaws.
        overall_quality: Mean rating of the sound, 1 to 5.
        prompt: Text that the clip should follow, if there is one.
        text_alignment: Mean rating of how well it does, 1 to 5.
        start_in_s: Where the clip begins in its file.
        duration_in_s: Its length; the rest of the file when `None`.
        quality_frames: Ratings along the clip, evenly spaced.
        quality_frame_rate: How many of them make a second.
    """

    id: str
    path: Path
    system: str
    overall_quality: float
    prompt: str | None = None
    text_alignment: float | None = None
    start_in_s: float = 0.0
    duration_in_s: float | None = None
    quality_frames: tuple[float, ...] | None = None
    quality_frame_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something in the data that could not be used: where it stands and what is wrong with it."""

    file: str
    line: int | None
    error: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.error}"


@dataclass(frozen=True, kw_only=True)
class RatedMusic:
    """A collection of rated clips.

    Args:
        splits: The clips of "train", "dev" and "test".
        faults: Rows that could not be used.
        system_ratings: Published mean ratings of the systems, `(overall_quality, text_alignment)`.
        person_ratings: Ratings of single persons, `(overall_quality, text_alignment)` each, by clip id and person.
    """

    splits: Mapping[str, list[RatedClip]]
    faults: list[Fault] = field(default_factory=list)
    system_ratings: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    person_ratings: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model says about clips; an alignment without a prompt is NaN.

    Args:
        overall_quality: Values `(clips,)`.
        text_alignment: Values `(clips,)`.
    """

    overall_quality: np.ndarray
    text_alignment: np.ndarray


def leave_systems_out(clips: list[RatedClip], num_folds: int, fold: int, seed: int = 0) -> dict[str, list[RatedClip]]:
    """Splits clips by their systems, so that the systems of "test" and of "dev" were never heard in training.

    The systems are dealt into `num_folds` folds; fold number `fold` is the test set, the next one the dev set.

    Args:
        clips: All rated clips.
        num_folds: Number of folds, at least three.
        fold: Which one is the test set.
        seed: Seed of the order in which the systems are dealt.
    """
    systems = sorted({clip.system for clip in clips})
    if not 3 <= num_folds <= len(systems) or not 0 <= fold < num_folds:
        raise ValueError(
            f"leaving systems out needs 3 <= `num_folds` <= number of systems and 0 <= `fold` < `num_folds`, "
            f"got num_folds={num_folds} and fold={fold} for {len(systems)} systems."
        )
    random.Random(seed).shuffle(systems)
    fold_of_system = {system: number % num_folds for number, system in enumerate(systems)}
    split_of_fold = {fold: "test", (fold + 1) % num_folds: "dev"}
    splits: dict[str, list[RatedClip]] = {split: [] for split in SPLITS}
    for clip in clips:
        splits[split_of_fold.get(fold_of_system[clip.system], "train")].append(clip)
    return splits


def write_faults(path: Path, faults: list[Fault]) -> None:
    """Writes the list of faults, a JSON object a line; an empty file says that there are none."""
    write_json_lines(path, [fault.__dict__ for fault in faults])
