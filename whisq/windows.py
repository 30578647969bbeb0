"""Clips as windows of at most thirty seconds, read one at a time, so that a file of hours needs no more memory.

A clip up to 30 s is one window. A longer one is cut into windows of 30 s that begin every 15 s; the last ends with the
clip. Clipping is measured on the samples of the file; whether there is anything to hear, on the mix of its channels, which
is what the encoder is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import signal

from qamdt.audio import SAMPLING_RATE
from qamdt.files import is_text
from qamdt.sound_files import CUT_TOLERANCE_IN_S, measure_length, read_samples
from whisq.audio import SILENT_PEAK, level, resample


WINDOW_IN_S = 30.0
WINDOW_HOP_IN_S = 15.0

CLIPPED_LEVEL = 0.999
CLIPPED_SHARE = 1e-3
SHORT_IN_S = 1.0
CANCELLED_LEVEL = 0.1  # of a mix, against that of its channels: -20 dB
AUDIBLE_FRAME_IN_S = 0.05
LOWEST_HEARD = 20.0  # Hz; below it nobody hears anything, whatever a drifting offset does to the samples
AUDIBLE_LEVEL = 10 ** (-50 / 20)  # against the peak of the clip
MIN_AUDIBLE_SHARE, FEW_AUDIBLE_SHARE = 0.05, 0.25  # below the first there is no score, below the second a flag
_HIGH_PASS = signal.butter(4, LOWEST_HEARD, "highpass", fs=SAMPLING_RATE, output="sos")
_PADDING = SAMPLING_RATE // 10
BATCH_IN_S = 160.0  # what the embedded scorer scores at once in well under a gigabyte


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a clip as the encoder hears it, and what was measured on it.

    Args:
        waveform: 16 kHz mono samples `(samples,)`.
        start_in_s: Where it begins in the clip.
        duration_in_s: Its real length.
        missing_in_s: How much the file lacks of what was asked for.
        sampling_rate: Rate of the file in Hz.
        num_channels: Channels of the file.
        peak: Largest magnitude of what the encoder hears, before it is levelled, above `LOWEST_HEARD`.
        mix_level: How loud the mix of the channels is against the channels, at most 1; 0 where they cancel out.
        audible_share: Share of the time at which something is heard.
        clipped_share: Share of the samples at full scale.
        is_finite: Whether no sample is NaN or infinite.
    """

    waveform: torch.Tensor
    start_in_s: float
    duration_in_s: float
    missing_in_s: float
    sampling_rate: int
    num_channels: int
    peak: float
    mix_level: float
    audible_share: float
    clipped_share: float
    is_finite: bool


def cut_windows(duration_in_s: float) -> list[tuple[float, float]]:
    """Lists start and length, in seconds, of the windows of a clip."""
    starts = [0.0]
    while starts[-1] + WINDOW_IN_S < duration_in_s:
        starts.append(starts[-1] + WINDOW_HOP_IN_S)
    return [(start, min(WINDOW_IN_S, duration_in_s - start)) for start in starts]


def make_window(
    samples: np.ndarray, sampling_rate: int, *, start_in_s: float = 0.0, asked_in_s: float | None = None
) -> Window:
    """Measures samples `(samples, channels)`, averages the channels, brings them to 16 kHz and to a peak of one half.

    Args:
        samples: What a file holds of the window.
        sampling_rate: Their rate in Hz.
        start_in_s: Where the window begins in its clip.
        asked_in_s: The length the window should have; all that there is when `None`.
    """
    magnitudes = np.abs(samples)
    is_finite = bool(np.isfinite(magnitudes).all())
    duration_in_s = len(samples) / sampling_rate
    is_heard = is_finite and len(samples) > 0
    channels = np.ascontiguousarray(samples.T)  # means over a few interleaved channels take four times as long
    waveform = torch.from_numpy(channels.mean(axis=0, dtype=np.float32))
    heard = resample(waveform - waveform.mean(), sampling_rate) if is_heard else waveform[:0]
    is_heard = len(heard) > 0
    audible = _take_out_infrasound(heard.numpy())
    return Window(
        waveform=level(heard) if is_heard else waveform,
        start_in_s=start_in_s,
        duration_in_s=duration_in_s,
        missing_in_s=0.0 if asked_in_s is None else max(asked_in_s - duration_in_s, 0.0),
        sampling_rate=sampling_rate,
        num_channels=samples.shape[1],
        peak=float(np.abs(audible).max(initial=0.0)),
        mix_level=_mix_level(channels) if is_heard else 1.0,
        audible_share=_audible_share(audible) if is_heard else 0.0,
        clipped_share=float((magnitudes >= CLIPPED_LEVEL).mean()) if magnitudes.size else 0.0,
        is_finite=is_finite,
    )


def _mix_level(channels: np.ndarray) -> float:
    """How loud the mean of channels `(channels, samples)` is against them; the mean over time left out."""
    channels = channels - channels.mean(axis=1, dtype=np.float64, keepdims=True)
    loudness = np.sqrt(np.square(channels).mean())
    return float(np.sqrt(np.square(channels.mean(axis=0)).mean()) / loudness) if loudness > 0 else 1.0


def _take_out_infrasound(waveform: np.ndarray) -> np.ndarray:
    """Returns what can be heard of 16 kHz samples `(samples,)`: an offset that drifts, or jumps once, is no sound."""
    if len(waveform) < 2:
        return np.zeros_like(waveform)
    padding = min(_PADDING, len(waveform) - 1)  # by mirrored samples, so that the ends make no sound of their own
    return signal.sosfiltfilt(_HIGH_PASS, waveform.astype(np.float64), padlen=padding)


def _audible_share(waveform: np.ndarray) -> float:
    """Share of the time at which 16 kHz samples `(samples,)` come near their peak, by 50 dB or less."""
    magnitudes = np.abs(waveform)
    frame = round(AUDIBLE_FRAME_IN_S * SAMPLING_RATE)
    peaks = np.maximum.reduceat(magnitudes, np.arange(0, len(magnitudes), frame))
    return float((peaks > max(AUDIBLE_LEVEL * magnitudes.max(), SILENT_PEAK)).mean())


def read_window(path: Path, *, clip_start_in_s: float, start_in_s: float, duration_in_s: float | None) -> Window:
    """Reads one window of a clip; beyond the end of the file it is empty.

    Args:
        path: Sound file.
        clip_start_in_s: Where the clip begins in the file.
        start_in_s: Where the window begins in the clip.
        duration_in_s: Length of the window; the rest of the file when `None`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be decoded.
    """
    if not is_text(str(path)):
        raise ValueError("the name of the file is not UTF-8; rename it.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    samples, rate = read_samples(path, start_in_s=clip_start_in_s + start_in_s, duration_in_s=duration_in_s)
    return make_window(samples, rate, start_in_s=start_in_s, asked_in_s=duration_in_s)


def read_windows(path: Path) -> list[Window]:
    """Reads a whole sound file as windows.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be decoded.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    length = measure_length(path)
    *some, last = [
        read_window(path, clip_start_in_s=0.0, start_in_s=start, duration_in_s=duration)
        for start, duration in cut_windows(length.duration_in_s)
    ]
    missing_in_s = length.missing_in_s if length.is_cut else 0.0
    return [*some, replace(last, missing_in_s=last.missing_in_s + missing_in_s)]


def cut_batches(lengths_in_s: Sequence[float], batch_seconds: float) -> list[range]:
    """Cuts a row of clips or windows into batches that hold at most so many seconds when padded to their longest."""
    batches, start, longest = [], 0, 0.0
    for index, length in enumerate(lengths_in_s):
        longest = max(longest, length, SHORT_IN_S)
        if index > start and (index + 1 - start) * longest > batch_seconds:
            batches.append(range(start, index))
            start, longest = index, max(length, SHORT_IN_S)
    return [*batches, range(start, len(lengths_in_s))] if len(lengths_in_s) else []


def find_flags(windows: Sequence[Window]) -> tuple[str, ...]:
    """Names what is remarkable about a clip, given its windows.

    `nan`: samples are not numbers. `silent`: nothing above -70 dB of full scale in the mix of the channels. `out_of_phase`:
    the channels cancel out but for less than -20 dB. `mostly_silent`: sound for less than a quarter of the time. `clipped`: more than a thousandth of
    the samples at full scale. `short`: under a second. `truncated`: the file ends before the clip should.
    `low_sampling_rate`: below the 16 kHz that the encoder hears. `multichannel`: more than two channels were averaged.
    """
    is_finite = all(window.is_finite for window in windows)
    has_sound = is_finite and clip_duration(windows) * SAMPLING_RATE >= 1
    is_silent = has_sound and max(window.peak for window in windows) <= SILENT_PEAK
    found = {
        "nan": not is_finite,
        "silent": is_silent,
        "out_of_phase": has_sound and _mean_by_length(windows, [w.mix_level for w in windows]) < CANCELLED_LEVEL,
        "mostly_silent": has_sound and not is_silent and audible_share(windows) < FEW_AUDIBLE_SHARE,
        "clipped": is_finite and _mean_by_length(windows, [w.clipped_share for w in windows]) > CLIPPED_SHARE,
        "short": clip_duration(windows) < SHORT_IN_S,
        "truncated": sum(window.missing_in_s for window in windows) > CUT_TOLERANCE_IN_S,
        "low_sampling_rate": windows[0].sampling_rate < SAMPLING_RATE,
        "multichannel": windows[0].num_channels > 2,
    }
    return tuple(flag for flag, is_set in found.items() if is_set)


def audible_share(windows: Sequence[Window]) -> float:
    """Share of the time of a clip at which something is heard, given its windows."""
    return _mean_by_length(windows, [window.audible_share for window in windows])


def clip_duration(windows: Iterable[Window]) -> float:
    """The length of the clip that the windows cover, in seconds; a window beyond the end of the file covers nothing."""
    return max(
        (window.start_in_s + window.duration_in_s for window in windows if window.duration_in_s > 0), default=0.0
    )


def _mean_by_length(windows: Sequence[Window], values: Sequence[float]) -> float:
    lengths = [window.duration_in_s for window in windows]
    return float(np.average(values, weights=lengths)) if sum(lengths) else 0.0
