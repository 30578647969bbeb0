"""What a scorer has to beat: predictions that need no ear, and the agreement of people with each other."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from whisq.evaluation.metrics import average_by_system
from whisq.ratings import Predictions, RatedClip


def look_up_systems(train: Sequence[RatedClip], clips: Sequence[RatedClip]) -> Predictions:
    """Predicts for each clip what the training clips of its system were rated on average, without hearing anything.

    A system that training lacks gets the mean of all.
    """
    tables = []
    for target in ("overall_quality", "text_alignment"):
        rated = [clip for clip in train if getattr(clip, target) is not None]
        ratings = [getattr(clip, target) for clip in rated]
        means = average_by_system([clip.system for clip in rated], ratings)
        default = fmean(ratings) if ratings else np.nan
        tables.append(np.array([means.get(clip.system, default) for clip in clips]))
    return Predictions(overall_quality=tables[0], text_alignment=tables[1])


def quality_as_alignment(clips: Sequence[RatedClip], overall_quality: Sequence[float]) -> Predictions:
    """Predicts the overall quality for the text alignment too, without reading the prompt."""
    values = np.asarray(overall_quality, dtype=np.float64)
    has_prompt = np.array([clip.prompt is not None for clip in clips])
    return Predictions(
        overall_quality=np.full_like(values, np.nan), text_alignment=np.where(has_prompt, values, np.nan)
    )


def exchange_prompts(clips: Sequence[RatedClip], seed: int = 0) -> list[RatedClip]:
    """Gives each clip the prompt of another one, with another text wherever that is possible.

    The ratings stay, so a model that reads its prompts no longer agrees with them.
    """
    generator = random.Random(seed)
    places_of_text: dict[str, list[int]] = {}
    for place, clip in enumerate(clips):
        if clip.prompt is not None:
            places_of_text.setdefault(clip.prompt, []).append(place)
    groups = [generator.sample(places, len(places)) for places in places_of_text.values()]
    generator.shuffle(groups)
    places = [place for group in groups for place in group]
    shift = max(map(len, groups), default=0)  # equal texts are neighbours, so this far away is another one
    exchanged = list(clips)
    for number, place in enumerate(places):
        exchanged[place] = replace(clips[place], prompt=clips[places[(number + shift) % len(places)]].prompt)
    return exchanged


def one_person_against_others(
    clips: Sequence[RatedClip], person_ratings: Mapping[str, Mapping[str, tuple[float, float]]], seed: int = 0
) -> tuple[list[RatedClip], Predictions]:
    """Takes one person's ratings, drawn for each clip, for predictions of the mean of the others.

    Returns:
        The clips that at least two persons rated, with the mean ratings of the others, and that one person's ratings.
    """
    generator = random.Random(seed)
    others: list[RatedClip] = []
    said: list[tuple[float, float]] = []
    for clip in clips:
        ratings = list(person_ratings.get(clip.id, {}).values())
        if len(ratings) < 2:
            continue
        said.append(ratings.pop(generator.randrange(len(ratings))))
        quality, alignment = (fmean(values) for values in zip(*ratings, strict=True))
        has_text = clip.text_alignment is not None
        others.append(replace(clip, overall_quality=quality, text_alignment=alignment if has_text else None))
    quality, alignment = np.array(said).reshape(-1, 2).T
    return others, Predictions(overall_quality=quality, text_alignment=alignment)
