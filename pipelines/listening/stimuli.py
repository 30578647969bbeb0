"""The sounds of a listening test: the same items by every system, a hidden reference, and anchors that should do badly."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import butter, sosfiltfilt

from pipelines.evaluation.clip_rows import hear
from pipelines.evaluation.wanted import Collection, open_collection
from pipelines.mastering import master
from whisq.scoring.clips import Clip


LOUDNESS_LUFS = -23.0  # of every clip, so that louder is not taken for better
HIDDEN_REFERENCE = "hidden reference"
# Low-pass filters, in Hz, as ITU-R BS.1534 has them.
ANCHORS = {"anchor, 3.5 kHz": 3500.0, "anchor, 7 kHz": 7000.0}


@dataclass(frozen=True, kw_only=True)
class Stimulus:
    """One sound of the test.

    Args:
        system: What made it.
        item: The prompt or piece that it is a version of.
        prompt: What it should follow.
        sound: It as a FLAC file, in a data URI.
    """

    system: str
    item: str
    prompt: str | None
    sound: str


def collect_stimuli(
    systems: Mapping[str, Path], reference: Path | None, *, num_items: int | None, seed: int
) -> tuple[list[Stimulus], list[str]]:
    """Reads the items that all systems have.

    Args:
        systems: Folder or manifest of each system by its name.
        reference: Folder or manifest of real music; anchors are made from it, or else from the first system.
        num_items: How many items to draw; all when `None`.
        seed: Seed of the draw.

    Returns:
        The sounds, and what was left out and why.

    Raises:
        ValueError: No item is there in all systems.
    """
    named = dict(systems) | ({} if reference is None else {HIDDEN_REFERENCE: reference})
    collections = {name: open_collection(place) for name, place in named.items()}
    versions = {name: _by_item(collection) for name, collection in collections.items()}
    common = [item for item in next(iter(versions.values())) if all(item in clips for clips in versions.values())]
    left_out = [
        f"{name}: {item!r} is not there in all systems"
        for name, clips in versions.items()
        for item in clips
        if item not in common
    ]
    if not common:
        raise ValueError(
            f"the systems {', '.join(map(repr, named))} have no item in common; their files must have the same names, or "
            "their records the same prompts."
        )
    if num_items is not None:
        order = np.random.default_rng(seed).permutation(len(common))
        common = [common[place] for place in sorted(order[:num_items])]
    stimuli: list[Stimulus] = []
    for item in common:
        try:
            stimuli += _read_item(item, {name: clips[item] for name, clips in versions.items()}, reference is not None)
        except (OSError, ValueError) as error:
            left_out.append(f"{item!r}: {error}")
    if not stimuli:
        raise ValueError(f"none of the {len(common)} common items can be heard; the first: {left_out[-1]}.")
    return stimuli, left_out


def _by_item(collection: Collection) -> dict[str, Clip]:
    """Clips by prompts, where each has one of its own, or else by the names of their files."""
    prompts = [clip.prompt for clip in collection.clips]
    if all(prompts) and len(set(prompts)) == len(prompts):
        return dict(zip(prompts, collection.clips, strict=True))
    return {clip.path.stem: clip for clip in collection.clips}


def _read_item(item: str, clips: Mapping[str, Clip], has_reference: bool) -> list[Stimulus]:
    sounds = {name: hear(clip) for name, clip in clips.items()}
    samples, rate = sounds[HIDDEN_REFERENCE] if has_reference else next(iter(sounds.values()))
    sounds |= {
        name: (sosfiltfilt(butter(8, edge, fs=rate, output="sos"), samples), rate)
        for name, edge in ANCHORS.items()
        if edge < rate / 2
    }
    prompt = next((clip.prompt for clip in clips.values() if clip.prompt), None)
    return [
        Stimulus(system=name, item=item, prompt=prompt, sound=encode_sound(*sound)) for name, sound in sounds.items()
    ]


def encode_sound(samples: np.ndarray, sampling_rate: int) -> str:
    """Brings samples `(samples,)` to `LOUDNESS_LUFS` and packs them into a data URI."""
    waveform = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    levelled = master(waveform, sampling_rate, loudness=LOUDNESS_LUFS).waveform.numpy()
    file = io.BytesIO()
    soundfile.write(file, levelled, sampling_rate, format="FLAC")
    return f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"


def systems_of(stimuli: Sequence[Stimulus]) -> list[str]:
    """The systems in the order of their first sound."""
    return list(dict.fromkeys(stimulus.system for stimulus in stimuli))
