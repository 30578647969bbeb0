"""What tempo, beat and key a recording has, as far as that can be told for sure: what is made for it goes with it."""

from __future__ import annotations

import torch

from qamdt.music import Music
from qamdt.tempo_and_key import beat_grid, key_and_margin, tempo_and_clarity


SHORTEST_IN_S = 3.0
LONGEST_IN_S = 60.0  # a tempo that wanders has no grid of beats for longer
# The thresholds of `data_prep.measure_music`, which says how often they are right.
MIN_TEMPO_CLARITY = 0.5
MIN_KEY_MARGIN = 0.1


def hear_music(
    recording: torch.Tensor, sampling_rate: int, *, bpm: float | None = None, start_in_s: float = 0.0
) -> Music:
    """Measures tempo, beat and key of a recording; what is not sure is unknown.

    Args:
        recording: Samples `(samples,)`.
        sampling_rate: Samples per second.
        bpm: The tempo, where it is known; the beat alone is then measured.
        start_in_s: Where in a clip the recording begins; beats are counted from the clip's start.
    """
    samples = recording[: round(LONGEST_IN_S * sampling_rate)].cpu().numpy()
    if len(samples) < SHORTEST_IN_S * sampling_rate:
        return Music()
    first_beat_in_s = None
    if bpm is None:
        measured, clarity = tempo_and_clarity(samples, sampling_rate)
        bpm = measured if clarity >= MIN_TEMPO_CLARITY else None
    if bpm is not None:
        bpm, first_beat_in_s = beat_grid(samples, sampling_rate, bpm)
        first_beat_in_s = (first_beat_in_s + start_in_s) % (60 / bpm)
    key, margin = key_and_margin(samples, sampling_rate)
    return Music(tempo_bpm=bpm, first_beat_in_s=first_beat_in_s, key=key if margin >= MIN_KEY_MARGIN else None)
