"""Raises the quality of a recording where its own WhisQ curve is low, and leaves alone what scores high.

    restored = pipe.restore("old.wav")
    restored.score_before.overall_quality, restored.score.overall_quality

Noise is put over the recording's latents and taken out twice, from the same noise: told the quality that the recording
has, and told that it is high. Only what the second differs in from the first is carried over to the recording
(`pipelines.spectral_change`), so it does not sound like the autoencoder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from pipelines.input_checks import check_number
from pipelines.pipeline_audio_to_audio import QAMDTAudioToAudioPipeline
from pipelines.recordings import read_recordings
from pipelines.samplers import NUM_STEPS_OF_CHANGE
from pipelines.spectral_change import carry_change
from whisq.scorer import ClipScore


GOOD_SCORE = 4.0  # from here on a recording is left alone, if the model does not say where "high" begins
MAX_STRENGTH = 0.7  # for the worst score there is
CROSS_FADE_IN_S = 0.25  # into a span and out of it: scores are read from windows, so its ends are not sharp


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """A recording that was restored.

    Args:
        audio: Its samples `(samples,)`, as long and as loud as it was.
        sampling_rate: Samples per second, in Hz: the model's.
        spans: What was changed, as `(start, end)` in seconds; nothing outside of it was.
        strength: Part of the denoising schedule that was run; 0 if nothing was changed.
        score_before: WhisQ's score and curve of the recording.
        score: That of the result.
    """

    audio: np.ndarray
    sampling_rate: int
    spans: tuple[tuple[float, float], ...]
    strength: float
    score_before: ClipScore
    score: ClipScore


def restore_recording(
    pipe: DiffusionPipeline,
    audio: str | os.PathLike | np.ndarray | torch.Tensor,
    *,
    sampling_rate: int | None = None,
    prompt: str = "",
    strength: float | None = None,
    good_score: float | None = None,
    num_inference_steps: int = NUM_STEPS_OF_CHANGE,
    guidance_scale: float = 1.0,
    seed: int = 0,
    callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
) -> Restoration:
    """Restores one recording; the arguments are those of `QAMDTPipeline.restore`."""
    if not isinstance(prompt, str):
        raise ValueError(f"`prompt` must be one text, got {prompt!r}.")
    if strength is not None:
        check_number("strength", strength, maximum=1)
    if good_score is None:
        good_score = GOOD_SCORE if pipe.quality_stats is None else pipe.quality_stats.prefix_edges[-1]
    check_number("good_score", good_score, minimum=1, maximum=5)
    recording = read_recordings(
        audio, sampling_rate, pipe.sampling_rate, max_length_in_s=pipe.config.max_audio_length_in_s
    )
    if len(recording) != 1:
        raise ValueError(
            f"`audio` must be one recording, got {len(recording)}; one of several channels has the shape "
            "(1, channels, samples)."
        )
    before = score_recording(pipe, recording[0])
    spans = find_low_spans(before, good_score)
    if strength is None:
        strength = choose_strength(before, good_score)
    if not spans or strength == 0:
        return _restoration(pipe, recording[0], (), 0.0, before, before)

    told = {"audio": recording[0], "sampling_rate": pipe.sampling_rate, "strength": strength}
    without, with_change = QAMDTAudioToAudioPipeline.from_pipe(pipe)(
        [prompt, prompt],
        **told,
        quality=[quality_curve(before), "high"],
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for _ in range(2)],  # the same noise for both
        callback_on_step_end=callback_on_step_end,
        output_type="pt",
    ).audios.cpu()
    changed = carry_change(recording, without[None], with_change[None], pipe.sampling_rate)
    share = share_of_change(spans, recording.shape[1], pipe.sampling_rate)
    restored = torch.where(share > 0, recording + share * (changed - recording), recording)[0]
    return _restoration(pipe, restored, spans, strength, before, score_recording(pipe, restored))


def describe_restoration(restored: Restoration, scorer: str) -> dict[str, Any]:
    """What was done to a recording, as JSON has it; `scorer` is the name of who says so."""
    facts = {"strength": restored.strength, "spans": [list(span) for span in restored.spans], "scorer": scorer}
    return {**facts, "before": asdict(restored.score_before), "after": asdict(restored.score)}


def summarize_restoration(restoration: dict[str, Any]) -> str:
    """One line for a person about what `describe_restoration` returned."""
    before, after = restoration["before"]["overall_quality"], restoration["after"]["overall_quality"]
    if not restoration["spans"]:
        return f"Scores {before:.2f} and is high throughout: nothing was changed."
    seconds = sum(end - start for start, end in restoration["spans"])
    return (
        f"{seconds:.1f} of {restoration['after']['duration_in_s']:.1f} s changed at strength "
        f"{restoration['strength']:.2f}: quality {before:.2f}, now {after:.2f}."
    )


def score_recording(pipe: DiffusionPipeline, recording: torch.Tensor) -> ClipScore:
    """WhisQ's opinion of samples `(samples,)`.

    Raises:
        ValueError: It has none, such as of silence.
    """
    (score,) = pipe.scorer.score(recording, pipe.sampling_rate)
    if score.error is not None:
        raise ValueError(f"`audio` must be audible music, and {score.error}.")
    return score


def find_low_spans(score: ClipScore, good_score: float) -> tuple[tuple[float, float], ...]:
    """Where a curve lies below a score: `(start, end)` in seconds, of the frames that it is made of."""
    is_low = np.array([value < good_score for value in score.frame_overall_quality])
    changes = np.flatnonzero(np.diff(np.concatenate([[0], is_low.astype(int), [0]]))).reshape(-1, 2)
    times = np.minimum(changes * score.frame_hop_in_s, score.duration_in_s)
    times[changes == len(is_low)] = score.duration_in_s
    return tuple((float(start), float(end)) for start, end in times)


def choose_strength(score: ClipScore, good_score: float) -> float:
    """The strength for a curve: in proportion to how far it lies below a good score where it does."""
    low = [value for value in score.frame_overall_quality if value < good_score]
    return MAX_STRENGTH * (good_score - float(np.mean(low))) / (good_score - 1) if low else 0.0


def quality_curve(score: ClipScore) -> list[tuple[float, float]]:
    """A score's curve as the `quality` of a call."""
    times = (np.arange(len(score.frame_overall_quality)) + 0.5) * score.frame_hop_in_s
    points = [
        (float(t), v) for t, v in zip(times, score.frame_overall_quality, strict=True) if t < score.duration_in_s
    ]
    return points or [(0.0, score.overall_quality)]


def share_of_change(spans: tuple[tuple[float, float], ...], num_samples: int, sampling_rate: int) -> torch.Tensor:
    """How much of a change is heard at each sample `(samples,)`: all in the spans, none a moment away from them."""
    times = torch.arange(num_samples) / sampling_rate
    distance = torch.full((num_samples,), torch.inf)
    for start, end in spans:
        distance = torch.minimum(distance, torch.maximum(start - times, times - end).clamp(min=0))
    return (1 - distance / CROSS_FADE_IN_S).clamp(min=0)


def _restoration(
    pipe: DiffusionPipeline,
    recording: torch.Tensor,
    spans: tuple[tuple[float, float], ...],
    strength: float,
    before: ClipScore,
    after: ClipScore,
) -> Restoration:
    return Restoration(
        audio=recording.numpy(),
        sampling_rate=pipe.sampling_rate,
        spans=spans,
        strength=strength,
        score_before=before,
        score=after,
    )
