"""A full-reference score of how much a clip was degraded: log-spectral distance in bark-like bands, mapped to 1 … 5.

It predicts the audible size of a *degradation* of a known original. It is no human mean opinion score, was fitted to
no listening test, and says nothing about how good the music is.

The measure, for each frame of 32 ms every 16 ms:

1. power in 40 bands that are about one critical band wide, in decibel;
2. everything below an audibility floor is raised to it: 65 dB below the loudest band of the original clip, and what
   the louder neighbouring bands of the same frame mask;
3. the mean absolute difference in decibel over the bands that are audible in either signal; what was added (noise,
   hum, distortion) counts more than what is missing, because an addition draws attention to itself;
4. averaged over 160 ms and mapped by `5 - 4 d / (d + HALF_WAY_DB)`: 5 without difference, 3 at `HALF_WAY_DB`.

The clip's score is the same map of the mean distance, where bad moments weigh more than good ones.
"""

import functools

import numpy as np


SCORER = "log-spectral-distance"
FRAME_RATE = 12.5
HALF_WAY_DB = 4.5
ADDED_WEIGHT = 1.4
NUM_BANDS = 40
FLOOR_DB = 65.0
MASKING_SLOPE_DB = 12.0


@functools.cache
def _bands(sampling_rate: int, fft_size: int) -> np.ndarray:
    """Rectangular bands `(bands, bins)` of equal width on Traunmüller's bark scale, each at least one bin wide."""
    frequencies = np.linspace(0, sampling_rate / 2, fft_size // 2 + 1)
    bark = 26.81 * frequencies / (1960 + frequencies) - 0.53
    edges = np.linspace(bark[1] - 1e-6, bark[-1] + 1e-6, NUM_BANDS + 1)
    member = (bark[None] >= edges[:-1, None]) & (bark[None] < edges[1:, None])
    return member[member.any(axis=1)].astype(np.float32)


def _band_levels(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Band power in decibel, `(frames, bands)`, in frames of 32 ms every 16 ms."""
    window_length = round(0.032 * sampling_rate)
    hop_length = window_length // 2
    padded = np.pad(np.asarray(waveform, dtype=np.float32), (hop_length // 2, window_length))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window_length)[::hop_length]
    power = np.abs(np.fft.rfft(frames * np.hanning(window_length).astype(np.float32), axis=1)) ** 2
    return 10 * np.log10(power.astype(np.float32) @ _bands(sampling_rate, window_length).T + 1e-10)


def _masked_levels(levels: np.ndarray, floor_db: float) -> np.ndarray:
    """Raises every band to what its louder neighbours mask and to the audibility floor."""
    masked = np.maximum(levels, floor_db)
    for distance in (1, 2):
        masked[:, distance:] = np.maximum(masked[:, distance:], levels[:, :-distance] - MASKING_SLOPE_DB * distance)
        masked[:, :-distance] = np.maximum(
            masked[:, :-distance], levels[:, distance:] - 1.6 * MASKING_SLOPE_DB * distance
        )
    return masked


def num_score_frames(num_samples: int, sampling_rate: int) -> int:
    """Number of values in the score curve of a clip."""
    return int(num_samples / sampling_rate * FRAME_RATE + 1e-6)


def _to_mos(distance_db):
    return 5.0 - 4.0 * distance_db / (distance_db + HALF_WAY_DB)


def degradation_mos(reference: np.ndarray, degraded: np.ndarray, sampling_rate: int) -> tuple[float, np.ndarray]:
    """Scores a degraded clip against its clean original; predicts degradation, is no human opinion score.

    Args:
        reference: The original, mono samples `(samples,)`.
        degraded: The degraded version, of the same length.
        sampling_rate: Rate of both in Hz.

    Returns:
        The score of the clip in [1, 5], and the scores along it `(frames,)` at `FRAME_RATE`; 5 means no difference.
    """
    if reference.shape != degraded.shape or reference.ndim != 1:
        raise ValueError(
            f"`degraded` must be mono and as long as `reference`, got shapes {degraded.shape} and {reference.shape}."
        )
    levels = _band_levels(reference, sampling_rate)
    floor_db = float(levels.max()) - FLOOR_DB
    original, heard = (_masked_levels(x, floor_db) for x in (levels, _band_levels(degraded, sampling_rate)))
    change = heard - original
    difference = np.where(change > 0, ADDED_WEIGHT * change, -change)
    is_audible = (original > floor_db) | (heard > floor_db)
    distances = difference.sum(axis=1) / np.maximum(is_audible.sum(axis=1), NUM_BANDS // 4)

    num_frames = num_score_frames(len(reference), sampling_rate)
    times = (np.arange(num_frames) + 0.5) / FRAME_RATE
    hops = np.arange(len(distances)) * 0.016 + 0.008
    smoothed = np.convolve(np.pad(distances, 5, mode="edge"), np.full(11, 1 / 11), mode="valid")
    curve = np.interp(times, hops, smoothed)
    clip_distance = float(np.sqrt(np.mean(np.square(curve)))) if num_frames else 0.0
    return float(np.clip(_to_mos(clip_distance), 1, 5)), np.clip(_to_mos(curve), 1, 5)
