"""Spans of a clip that are made anew around a recording that stays: which samples, and how both come together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pipelines.quality_argument import is_number


CROSS_FADE_IN_S = 0.04  # where what is made and what stays sound together, outside each span
LOOP_SEAM_IN_S = 1.0  # at the end of a recording that is made a loop
MIRROR_IN_S = (
    2.0  # how much of a recording is mirrored beyond its ends, so that the autoencoder hears no silence there
)


def find_made(
    spans: Sequence[tuple[float, float]], num_samples: int, recording: slice, sampling_rate: int
) -> torch.Tensor:
    """Says which samples of a clip are made anew: those of the spans, and those that the recording does not reach.

    Args:
        spans: `(start, end)` in seconds, in any order.
        num_samples: Length of the clip.
        recording: Samples of the clip that the recording fills.
        sampling_rate: Samples per second.

    Returns:
        Booleans of shape `(samples,)`.

    Raises:
        ValueError: A span is none or not in the clip, the clip is too short for the recording, or nothing or all of it
            is to be made.
    """
    length_in_s = num_samples / sampling_rate
    if recording.stop > num_samples:
        raise ValueError(
            "`audio_length_in_s` must reach to the end of the recording, at "
            f"{recording.stop / sampling_rate:.5g} s, got {length_in_s:.5g}; cut `audio` to leave some of it out."
        )
    is_made = torch.ones(num_samples, dtype=torch.bool)
    is_made[recording] = False
    if not isinstance(spans, Sequence) or isinstance(spans, str):
        raise ValueError(f"`spans` must be a list of (start, end) in seconds, got {spans!r}.")
    for span in spans:
        is_pair = isinstance(span, Sequence) and len(span) == 2 and all(map(is_number, span))
        if not is_pair or not 0 <= span[0] < span[1] <= length_in_s:
            raise ValueError(
                f"`spans` must hold (start, end) with 0 <= start < end <= {length_in_s:.5g}, the length of the clip in "
                f"seconds, got {span!r}. A longer `audio_length_in_s` goes on after the recording."
            )
        start, end = (round(second * sampling_rate) for second in span)
        is_made[start : max(end, start + 1)] = True
    if not is_made.any():
        raise ValueError(
            "`spans` must say what to play anew, or `audio_length_in_s` be longer than the recording, got "
            f"{list(spans)!r} and {length_in_s:.5g} s: nothing is to be made."
        )
    if is_made.all():
        raise ValueError(f"`spans` must leave some of the recording, got {list(spans)!r}; `QAMDTPipeline` needs none.")
    return is_made


def lay_out_recordings(recordings: torch.Tensor, start: int, num_samples: int, sampling_rate: int) -> torch.Tensor:
    """Places recordings `(batch, samples)` in clips of `num_samples`, mirrored beyond their ends and then silent."""
    mirrored = min(recordings.shape[1] - 1, round(MIRROR_IN_S * sampling_rate))
    before, after = start, num_samples - start - recordings.shape[1]
    padded = F.pad(recordings.unsqueeze(1), (min(before, mirrored), min(after, mirrored)), mode="reflect").squeeze(1)
    return F.pad(padded, (before - min(before, mirrored), after - min(after, mirrored)))


def cross_fade(
    originals: torch.Tensor, made: torch.Tensor, is_made: torch.Tensor, sampling_rate: int, *, is_loop: bool = False
) -> torch.Tensor:
    """Puts what is made into the recordings: it alone where it is made, a cross-fade of equal power before and behind.

    Args:
        originals: The recordings `(batch, samples)`.
        made: The clips that were made `(batch, samples)`.
        is_made: Which samples are made `(samples,)`.
        sampling_rate: Samples per second.
        is_loop: Whether the first sample follows the last.
    """
    half = round(CROSS_FADE_IN_S / 2 * sampling_rate)
    beyond = F.pad(is_made[None, None].float(), (2 * half, 2 * half), mode="circular" if is_loop else "replicate")
    wide = F.max_pool1d(beyond, 2 * half + 1, stride=1)
    share = F.avg_pool1d(wide, 2 * half + 1, stride=1)[0, 0]  # of what is made
    mixed = torch.sin(torch.pi / 2 * share) * made + torch.cos(torch.pi / 2 * share) * originals
    return torch.where(share == 0, originals, torch.where(is_made, made, mixed))
