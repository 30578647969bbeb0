"""A listening test as one HTML file that needs no network, and the key that says which sound is whose."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.listening import KINDS
from pipelines.listening.stimuli import ANCHORS, HIDDEN_REFERENCE, Stimulus, systems_of
from qamdt.keyed_rows import make_key


TEMPLATE = Path(__file__).with_name("page.html")
Test = tuple[dict[str, Any], dict[str, Any]]


def build_test(kind: str, stimuli: Sequence[Stimulus], *, title: str, seed: int) -> Test:
    """Lays out a test.

    Args:
        kind: "mos", where each sound is rated by itself from 1 to 5, for its quality and for how well it follows its
            prompt; "mushra", where all versions of an item are rated side by side from 0 to 100, beside the open
            reference where there is one; "abx", where listeners say which of two systems a third sound is of.
        stimuli: The sounds, item by item.
        title: What the page is called.
        seed: Seed of the names of sounds, and of which of two sounds X is.

    Returns:
        What goes into the page, and its key.

    Raises:
        ValueError: The kind is unknown, or the systems do not fit it.
    """
    systems = [name for name in systems_of(stimuli) if name not in ANCHORS]
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")
    if kind == "abx":
        if len(systems) != 2:
            raise ValueError(f"an ABX test compares two systems, a reference counting as one, got {systems}.")
        stimuli = [stimulus for stimulus in stimuli if stimulus.system in systems]
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(len(stimuli))  # so that a sound's name tells nothing
    names = [f"c{number:04d}" for number in numbers]
    clips = dict(zip(names, stimuli, strict=True))
    trials, answers = _lay_out(kind, clips, generator)
    test_id = f"{make_key(kind, seed, [(name, clip.sound) for name, clip in clips.items()]):016x}"
    test = {"id": test_id, "kind": kind, "title": title, "trials": trials}
    test["sounds"] = {name: clips[name].sound for name in sorted(clips)}
    key = {
        "id": test_id,
        "kind": kind,
        "clips": {name: {"system": clip.system, "item": clip.item} for name, clip in clips.items()},
        "trials": {trial["id"]: trial["clips"] for trial in trials},
        "answers": answers,
    }
    return test, key


def _lay_out(
    kind: str, clips: dict[str, Stimulus], generator: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Returns the trials, and for ABX which of A and B the X of each is."""
    trials: list[dict[str, Any]] = []
    answers: dict[str, str] = {}
    for _, group in groupby(clips, key=lambda name: clips[name].item):
        names = list(group)
        prompt = clips[names[0]].prompt
        if kind == "mos":
            trials += [
                {"id": f"t{len(trials) + i:04d}", "prompt": prompt, "clips": [name]} for i, name in enumerate(names)
            ]
            continue
        trial: dict[str, Any] = {"id": f"t{len(trials):04d}", "prompt": prompt, "clips": names}
        if kind == "mushra":
            trial["reference"] = next((name for name in names if clips[name].system == HIDDEN_REFERENCE), None)
        else:
            answers[trial["id"]] = "AB"[generator.integers(2)]
            trial["x"] = names["AB".index(answers[trial["id"]])]
        trials.append(trial)
    return trials, answers


def format_page(test: dict[str, Any]) -> str:
    """Returns the page of a test."""
    # "</" would end the script that holds the data.
    data = json.dumps(test, ensure_ascii=False).replace("</", "<\\/")
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("{{title}}", html.escape(test["title"])).replace("{{test}}", data)
