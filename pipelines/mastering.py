"""What becomes of a waveform before it is written: another sampling rate, a given loudness, no clipping, no clicks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import soxr
import torch
from diffusers.utils import logging


logger = logging.get_logger(__name__)

# What is nearer to full scale can clip in players and in lossy codecs, even if no sample does.
PEAK_DBTP = -1.0
_OVERSAMPLING = 4  # finds peaks between samples, as ITU-R BS.1770 has it
_PEAK_BLOCK, _PEAK_CONTEXT = 2**19, 512  # samples
_GATING_BLOCK_IN_S = 0.4


@dataclass(frozen=True, kw_only=True)
class Master:
    """A waveform that is ready to be written.

    Args:
        waveform: Its samples `(samples,)`.
        sampling_rate: Samples per second, in Hz.
        gain_db: How much louder it was made; negative where it was made softer.
        loudness_lufs: How loud it is, by ITU-R BS.1770; `None` for silence, or if no loudness was asked for.
    """

    waveform: torch.Tensor
    sampling_rate: int
    gain_db: float
    loudness_lufs: float | None


def master(
    waveform: torch.Tensor,
    sampling_rate: int,
    *,
    output_sampling_rate: int | None = None,
    loudness: float | None = None,
    fade_ms: float = 5.0,
) -> Master:
    """Makes a waveform ready to be written.

    Args:
        waveform: Mono samples `(samples,)`.
        sampling_rate: Their rate in Hz.
        output_sampling_rate: The rate to resample to; unchanged when `None`.
        loudness: Loudness to bring it to, in LUFS; unchanged when `None`. Where that would lift its true peak above
            -1 dB of full scale, it is lifted as far as that, and a warning says so.
        fade_ms: Length in milliseconds of the fades at both ends, at most half of the clip each.
    """
    samples = waveform.cpu().float().numpy().astype(np.float64)
    rate = sampling_rate if output_sampling_rate is None else output_sampling_rate
    if rate != sampling_rate:
        samples = soxr.resample(samples, sampling_rate, rate, quality="VHQ")
    before = None if loudness is None else measure_loudness(samples, rate)
    gain_db = 0.0 if before is None else loudness - before
    headroom_db = PEAK_DBTP - true_peak_db(samples)
    if before is not None and gain_db > headroom_db:
        logger.warning(
            f"`loudness` of {loudness:g} LUFS would clip, so the clip is only brought to {before + headroom_db:.1f} LUFS."
        )
    gain_db = min(gain_db, headroom_db)
    samples = _fade_ends(samples * 10 ** (gain_db / 20), round(fade_ms / 1000 * rate))
    return Master(
        waveform=torch.from_numpy(samples.astype(np.float32)),
        sampling_rate=rate,
        gain_db=gain_db,
        loudness_lufs=None if before is None else before + gain_db,
    )


def measure_loudness(samples: np.ndarray, sampling_rate: int) -> float | None:
    """Integrated loudness of mono samples `(samples,)` in LUFS, by ITU-R BS.1770; `None` for silence.

    A clip that is shorter than the 0.4 s of a gating block is one block.
    """
    import pyloudnorm

    block_in_s = min(_GATING_BLOCK_IN_S, len(samples) / sampling_rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        loudness = pyloudnorm.Meter(sampling_rate, block_size=block_in_s).integrated_loudness(samples)
    return float(loudness) if math.isfinite(loudness) else None


def true_peak_db(samples: np.ndarray) -> float:
    """Largest magnitude between and at the samples `(samples,)`, in decibel of full scale; silence has -inf."""
    peak = np.abs(samples).max(initial=0.0)
    for start in range(0, len(samples), _PEAK_BLOCK):  # oversampled as a whole, a long clip would fill the memory
        first = max(start - _PEAK_CONTEXT, 0)
        oversampled = soxr.resample(
            samples[first : start + _PEAK_BLOCK + _PEAK_CONTEXT], 1, _OVERSAMPLING, quality="HQ"
        )
        oversampled = oversampled[(start - first) * _OVERSAMPLING :][: _PEAK_BLOCK * _OVERSAMPLING]
        peak = max(peak, np.abs(oversampled).max(initial=0.0))
    return 20 * math.log10(peak) if peak > 0 else -math.inf


def _fade_ends(samples: np.ndarray, num_faded: int) -> np.ndarray:
    num_faded = min(num_faded, len(samples) // 2)
    rising = np.sin(np.linspace(0, math.pi / 2, num_faded, endpoint=False)) ** 2
    gain = np.ones(len(samples))
    gain[:num_faded] = rising
    gain[len(samples) - num_faded :] = rising[::-1]
    return samples * gain
