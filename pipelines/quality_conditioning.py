"""What the quality asked for tells the text encoder and the network.

It becomes a prefix of the prompt, one level for the whole clip, and one fractional level for every latent frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.quality_argument import Quality, check_word, is_curve, read_curve
from qamdt.quality import QualityStats
from qamdt.quality_words import QUALITY_WORDS, UNKNOWN_LEVEL, quality_prefix


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
    weights: np.ndarray | None = None,
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
        weights: How much each latent frame counts for prefix and level, not all 0; all the same when `None`.
        name: The argument to name in errors.
    """
    num_frames = len(frame_times_in_s)
    if quality is None:
        return QualityCondition("", UNKNOWN_LEVEL, np.zeros(num_frames, dtype=np.float32))
    if isinstance(quality, str):
        check_word(quality, name=name, words=QUALITY_WORDS if stats is None else stats.words)
        level = QUALITY_WORDS[quality].level
        return QualityCondition(quality_prefix(quality), level, np.full(num_frames, level, dtype=np.float32))

    seconds, scores = read_curve(quality, name=name)
    if stats is None:
        raise ValueError(
            f"`{name}` must be a word for this model, which has no quality statistics to read the scores "
            f"{quality!r} with; pass `quality_stats` to `from_pretrained` to use scores."
        )
    if seconds is None:
        seconds = np.linspace(0, audio_length_in_s, len(scores))
    elif seconds[-1] > audio_length_in_s:
        raise ValueError(
            f"`{name}` must have seconds up to the length of the clip ({audio_length_in_s:g}), got {seconds[-1]:g}."
        )
    frame_scores = np.interp(frame_times_in_s, seconds, scores)
    mean_score = float(np.average(frame_scores, weights=weights))
    return QualityCondition(stats.prefix(mean_score), stats.level(mean_score), stats.fractional_level(frame_scores))


def resolve_qualities(
    quality: Quality | list[Quality],
    stats: QualityStats | None,
    frame_times_in_s: np.ndarray,
    audio_length_in_s: float,
    *,
    num_prompts: int,
    weights: np.ndarray | None = None,
    name: str = "quality",
) -> list[QualityCondition]:
    """Resolves the quality of every prompt.

    A list of numbers and a list of `(second, score)` tuples are a curve, and apply to all prompts. Any other list
    holds one quality for each prompt. So `["high", 3.2]` and `[[2.0, 4.5], [3.0]]` are per prompt, and a list of one
    score is how a number is written there. `weights` has the shape `(prompts, latent_frames)`.
    """
    weights = [None] * num_prompts if weights is None else weights
    if not isinstance(quality, list) or is_curve(quality):
        quality = [quality] * num_prompts
    elif len(quality) != num_prompts:
        raise ValueError(
            f"`{name}` must be one quality for all prompts or a list with one for each of the {num_prompts} prompts, "
            f"got a list of {len(quality)}: {quality!r}."
        )
    return [
        resolve_quality(entry, stats, frame_times_in_s, audio_length_in_s, weights=counts, name=name)
        for entry, counts in zip(quality, weights, strict=True)
    ]


def add_prefixes(prompts: list[str], qualities: list[QualityCondition]) -> list[str]:
    """Puts the quality in front of each prompt; an empty one stays empty, as in unconditional training."""
    return [quality.prefix + text if text else "" for text, quality in zip(prompts, qualities, strict=True)]
