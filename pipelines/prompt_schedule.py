"""What `prompt=` may be: a text, or texts that take turns over the clip, as `(second, text)` tuples.

It is read without numpy and torch, so that a wrong request is refused before anything slow is imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from pipelines.input_checks import check_characters, check_texts
from pipelines.quality_argument import is_number


Schedule = Sequence[tuple[float, str]]


def is_schedule(prompt: object) -> bool:
    """Whether a prompt is a list of `(second, text)` tuples rather than a text or a list of prompts."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(point, tuple) for point in prompt)


def check_prompts(prompt: str | Schedule | list[str | Schedule]) -> None:
    """Refuses what is neither a prompt, a text or a schedule, nor a list of them."""
    if is_schedule(prompt):
        _check_schedule(prompt)
    elif isinstance(prompt, list) and any(map(is_schedule, prompt)):
        for one in prompt:
            check_prompts(one)
    else:
        check_texts("prompt", prompt)


def _check_schedule(schedule: Schedule) -> None:
    if not all(len(point) == 2 and is_number(point[0]) and isinstance(point[1], str) for point in schedule):
        raise ValueError(f"`prompt` must be a text or (second, text) tuples, got {list(schedule)!r}.")
    for _, text in schedule:
        check_characters("prompt", text)
    seconds = [second for second, _ in schedule]
    if seconds[0] != 0 or not all(map(math.isfinite, seconds)) or any(a >= b for a, b in pairwise(seconds)):
        raise ValueError(f"`prompt` must have rising seconds that begin at 0, got {seconds}.")


def texts_of_sections(schedules: Sequence[Schedule]) -> list[list[str]]:
    """The text of every prompt in each section, `[section][prompt]`; the last text of a prompt with fewer stays."""
    num_sections = max(map(len, schedules))
    return [[schedule[min(number, len(schedule) - 1)][1] for schedule in schedules] for number in range(num_sections)]


def split_schedule(schedule: Schedule, cuts: Sequence[float]) -> Schedule:
    """The same schedule with sections that begin at each of the seconds `cuts`, too, with the text that is played then."""
    texts = dict(schedule)
    seconds = sorted({*texts, *cuts})
    return [(second, texts[max(begin for begin in texts if begin <= second)]) for second in seconds]
