"""What `quality=` may be: a word, a score (MOS), a curve of scores over the clip, or `None` for unknown.

It is read without numpy and torch, so that a wrong request is refused before anything slow is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Real

from qamdt.quality_words import MAX_SCORE, MIN_SCORE, QUALITY_WORDS, list_words


Curve = Sequence[float] | Sequence[tuple[float, float]]
Quality = str | float | Curve | None


def check_word(word: str, *, name: str = "quality", words: Iterable[str] = QUALITY_WORDS) -> None:
    """Refuses a word that is not among those that a model knows."""
    if word not in words:
        raise ValueError(f"`{name}` must be {_expected(words)}; got {word!r}.")


def read_curve(quality: float | Curve, *, name: str = "quality") -> tuple[list[float] | None, list[float]]:
    """Reads the points of a curve; a single score is a curve of one point.

    Returns:
        The second of each point, rising from at least 0, or `None` where they are to be spread evenly, and its score.
    """
    if is_number(quality):
        quality = [quality]
    elif hasattr(quality, "tolist"):  # an array
        quality = quality.tolist()
    is_list = isinstance(quality, Sequence) and not isinstance(quality, str) and len(quality) > 0
    if not is_list or not is_curve(quality):
        raise ValueError(f"`{name}` must be {_expected()}; got {quality!r}.")
    if is_number(quality[0]):
        seconds, scores = None, [float(score) for score in quality]
    elif all(len(point) == 2 and all(map(is_number, point)) for point in quality):
        seconds, scores = ([float(value) for value in values] for values in zip(*quality, strict=True))
    else:
        raise ValueError(f"`{name}` must be {_expected()}; got {quality!r}.")
    for score in scores:
        if not MIN_SCORE <= score <= MAX_SCORE:  # also refuses NaN
            raise ValueError(f"`{name}` must hold scores from {MIN_SCORE:g} to {MAX_SCORE:g}, got {score:g}.")
    if seconds is not None:
        is_rising = all(map(math.isfinite, seconds)) and all(first < second for first, second in pairwise(seconds))
        if not is_rising or seconds[0] < 0:
            raise ValueError(f"`{name}` must have rising seconds of at least 0, got {seconds}.")
    return seconds, scores


def is_curve(quality: object) -> bool:
    """Whether a list is one curve rather than one quality per prompt; an empty list is a (bad) curve."""
    return isinstance(quality, Sequence) and (
        all(is_number(entry) for entry in quality) or all(isinstance(entry, tuple) for entry in quality)
    )


def is_number(value: object) -> bool:
    """Whether a value is a real number; `True` is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _expected(words: Iterable[str] = QUALITY_WORDS) -> str:
    return (
        f"{list_words(words)}, a score from {MIN_SCORE:g} to {MAX_SCORE:g}, a curve (a list of scores, or of "
        "(second, score) tuples), or None for unknown"
    )
