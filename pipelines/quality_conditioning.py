"""What `quality=` may be, and what it tells the text encoder and the network.

A request is a word, a score (MOS), a curve of scores over the clip, or `None` for "unknown". It becomes a prefix
of the prompt, one level for the whole clip, and one fractional level for every latent frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from qamdt.quality import MAX_SCORE, MIN_SCORE, UNKNOWN_LEVEL, WORD_LEVELS, QualityStats, quality_prefix


Curve = Sequence[float] | Sequence[tuple[float, float]]
Quality = str | float | Curve | None

_EXPECTED = (
    f'"high", "medium", "low", a score from {MIN_SCORE:g} to {MAX_SCORE:g}, a curve (a list of scores, or of '
    "(second, score) tuples), or None for unknown"
)


@dataclass(frozen=True)
class QualityCondition:
    """The quality of one clip, as the text encoder and the network take it.

    Args:
        prefix: Text in front of the prompt, such as `"high quality, "`; empty when unknown.
        level: Level 1 to 5 of the clip, 0 when unknown.
        frame_levels: Fractional levels of shape `(latent_frames,)`, 0 when unknown.
    """

    prefix: str
    level: int
    frame_levels: np.ndarray


def resolve_quality(
    quality: Quality,
    stats: QualityStats | None,
    frame_times_in_s: np.ndarray,
    audio_length_in_s: float,
    *,
    name: str = "quality",
) -> QualityCondition:
    """Turns the quality asked for one clip into what the network is told.

    Args:
        quality: A word, a score, a curve or `None`. A list of scores is spread evenly from the first to the last
            moment of the clip; `(second, score)` tuples stand where they say. Between points the curve is a straight
            line, and before the first and after the last it is constant.
        stats: Where the levels of the model begin; scores and curves cannot be read without.
        frame_times_in_s: The middle of every latent frame, in seconds.
        audio_length_in_s: Length of the clip in seconds.
        name: The argument to name in errors.
    """
    num_frames = len(frame_times_in_s)
    if quality is None:
        return QualityCondition("", UNKNOWN_LEVEL, np.zeros(num_frames, dtype=np.float32))
    if isinstance(quality, str):
        if quality not in WORD_LEVELS:
            raise ValueError(f"`{name}` must be {_EXPECTED}; got {quality!r}.")
        level = WORD_LEVELS[quality]
        return QualityCondition(quality_prefix(quality), level, np.full(num_frames, level, dtype=np.float32))

    seconds, scores = _curve_points(quality, audio_length_in_s, name)
    if stats is None:
        raise ValueError(
            f"`{name}` must be a word for this model, which has no quality statistics to read the scores "
            f"{quality!r} with; pass `quality_stats` to `from_pretrained` to use scores."
        )
    frame_scores = np.interp(frame_times_in_s, seconds, scores)
    mean_score = float(frame_scores.mean())
    return QualityCondition(stats.prefix(mean_score), stats.level(mean_score), stats.fractional_level(frame_scores))


def resolve_qualities(
    quality: Quality | list[Quality],
    stats: QualityStats | None,
    frame_times_in_s: np.ndarray,
    audio_length_in_s: float,
    *,
    num_prompts: int,
    name: str = "quality",
) -> list[QualityCondition]:
    """Resolves the quality of every prompt.

    A list of numbers and a list of `(second, score)` tuples are a curve, and apply to all prompts. Any other list
    holds one quality for each prompt. So `["high", 3.2]` and `[[2.0, 4.5], [3.0]]` are per prompt, and a list of one
    score is how a number is written there.
    """
    if not isinstance(quality, list) or _is_curve(quality):
        shared = resolve_quality(quality, stats, frame_times_in_s, audio_length_in_s, name=name)
        return [shared] * num_prompts
    if len(quality) != num_prompts:
        raise ValueError(
            f"`{name}` must be one quality for all prompts or a list with one for each of the {num_prompts} prompts, "
            f"got a list of {len(quality)}: {quality!r}."
        )
    return [resolve_quality(entry, stats, frame_times_in_s, audio_length_in_s, name=name) for entry in quality]


def add_prefixes(prompts: list[str], qualities: list[QualityCondition]) -> list[str]:
    """Puts the quality in front of each prompt; an empty one stays empty, as in unconditional training."""
    return [quality.prefix + text if text else "" for text, quality in zip(prompts, qualities, strict=True)]


def _is_curve(quality: object) -> bool:
    """Whether a list is one curve rather than one quality per prompt; an empty list is a (bad) curve."""
    return isinstance(quality, Sequence) and (
        all(_is_number(entry) for entry in quality) or all(isinstance(entry, tuple) for entry in quality)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _curve_points(quality: object, audio_length_in_s: float, name: str) -> tuple[list[float], list[float]]:
    """Seconds and scores of a curve's points; a single score is a curve of one point."""
    if _is_number(quality):
        quality = [quality]
    elif isinstance(quality, np.ndarray):
        quality = quality.tolist()
    if not isinstance(quality, Sequence) or not quality or not _is_curve(quality):
        raise ValueError(f"`{name}` must be {_EXPECTED}; got {quality!r}.")

    if _is_number(quality[0]):
        points = list(zip(np.linspace(0, audio_length_in_s, len(quality)).tolist(), quality, strict=True))
    elif all(len(point) == 2 and all(map(_is_number, point)) for point in quality):
        points = quality
    else:
        raise ValueError(f"`{name}` must be {_EXPECTED}; got {quality!r}.")
    seconds, scores = [float(second) for second, _ in points], [float(score) for _, score in points]
    for score in scores:
        if not MIN_SCORE <= score <= MAX_SCORE:  # also refuses NaN
            raise ValueError(f"`{name}` must hold scores from {MIN_SCORE:g} to {MAX_SCORE:g}, got {score:g}.")
    is_rising = all(math.isfinite(second) for second in seconds) and all(np.diff(seconds) > 0)
    if not is_rising or seconds[0] < 0 or seconds[-1] > audio_length_in_s:
        raise ValueError(
            f"`{name}` must have rising seconds between 0 and the length of the clip ({audio_length_in_s:g}), "
            f"got {seconds}."
        )
    return seconds, scores
