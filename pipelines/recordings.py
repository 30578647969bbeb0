"""Recordings that a call begins with: read, checked, and brought to the rate and the one channel of the model."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path

import numpy as np
import soxr
import torch
from diffusers.utils import logging
from torch import nn

from qamdt.audio import LogMel, read_audio
from qamdt.decoding import samples_per_frame
from qamdt.sound_files import measure_length, open_sound
from whisq.audio import SILENT_PEAK


logger = logging.get_logger(__name__)

MIN_LENGTH_IN_S = 0.1


def read_recordings(
    audio: str | os.PathLike | np.ndarray | torch.Tensor,
    sampling_rate: int | None,
    model_rate: int,
    *,
    max_length_in_s: float,
) -> torch.Tensor:
    """Reads the `audio` of a call, of any rate and number of channels, and says so where it has to be changed.

    Args:
        audio: A sound file, or samples between about -1 and 1 of shape `(samples,)`, `(recordings, samples)` or
            `(recordings, channels, samples)`.
        sampling_rate: Samples per second of samples, in Hz; `None` for a file.
        model_rate: Samples per second to return.
        max_length_in_s: What is longer is refused.

    Returns:
        Recordings of shape `(recordings, samples)` in float32, as loud as they were.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no sound, too short or too long.
    """
    if isinstance(audio, str | os.PathLike):
        if sampling_rate is not None:
            raise ValueError(f"`sampling_rate` goes with samples; a file says its own. Got {sampling_rate!r}.")
        return _read_file(Path(audio), model_rate, max_length_in_s)
    recordings = _check_samples(audio)
    if not isinstance(sampling_rate, Integral) or isinstance(sampling_rate, bool) or sampling_rate < 1:
        raise ValueError(f"`sampling_rate` must say how many samples of `audio` are a second, got {sampling_rate!r}.")
    num_channels = recordings.shape[1]
    _check_length(recordings.shape[2] / sampling_rate, max_length_in_s)
    recordings = recordings.mean(dim=1)
    _say_what_changes(sampling_rate, num_channels, model_rate)
    if sampling_rate != model_rate:
        resampled = soxr.resample(recordings.T.numpy(), sampling_rate, model_rate)
        recordings = torch.from_numpy(np.ascontiguousarray(resampled.T))
    return _check_finite(recordings)


def level_recordings(
    recordings: torch.Tensor, is_heard: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes recordings `(batch, samples)` as loud as the autoencoder knows music (`qamdt.audio.normalize_waveform`).

    Args:
        recordings: The recordings.
        is_heard: Samples `(samples,)` that say how loud a recording is; all of them when `None`.

    Returns:
        The levelled recordings, and what music that is made from each of them is multiplied with to be as loud as it
        was, `(batch, 1)`.

    Raises:
        ValueError: Nothing is to be heard.
    """
    heard = recordings if is_heard is None else recordings[:, is_heard]
    mean = heard.mean(dim=1, keepdim=True)
    peaks = (heard - mean).abs().amax(dim=1, keepdim=True)
    if (peaks < SILENT_PEAK).any():
        where = "" if is_heard is None else " outside the spans"
        raise ValueError(f"`audio` must be audible{where}, got silence; `QAMDTPipeline` plays without a recording.")
    return (recordings - mean) / (2 * peaks), 2 * peaks


def log_mel_of(vocoder: nn.Module) -> LogMel:
    """The spectrogram that a vocoder turns into sound, as the autoencoder before it was trained on."""
    config = vocoder.config
    num_mel_bins = config.num_mel_bins if "num_mel_bins" in config else config.model_in_dim
    return LogMel(config.sampling_rate, hop_length=samples_per_frame(vocoder), num_mel_bins=num_mel_bins)


def _read_file(path: Path, model_rate: int, max_length_in_s: float) -> torch.Tensor:
    length = measure_length(path)
    _check_length(length.duration_in_s, max_length_in_s)  # before hours of it are read
    with open_sound(path) as file:
        _say_what_changes(file.samplerate, file.channels, model_rate)
    if length.is_cut:
        logger.warning(f"`audio` {str(path)!r} ends before it should; {length.duration_in_s:.2f} s of it are taken.")
    return read_audio(path, model_rate, duration_in_s=length.duration_in_s)[None]


def _check_samples(audio: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Samples as `(recordings, channels, samples)` in float32."""
    if not isinstance(audio, np.ndarray | torch.Tensor):
        raise ValueError(f"`audio` must be a sound file, an array or a tensor, got {type(audio).__name__}.")
    samples = torch.as_tensor(audio).detach().cpu()
    if not samples.is_floating_point():
        raise ValueError(
            f"`audio` must hold samples between -1 and 1, got {samples.dtype}; divide integers by their largest value."
        )
    if not 1 <= samples.ndim <= 3 or samples.numel() == 0:
        raise ValueError(
            "`audio` must have the shape (samples,), (recordings, samples) or (recordings, channels, samples), "
            f"got {tuple(samples.shape)}."
        )
    samples = samples.float()[None] if samples.ndim == 1 else samples.float()
    return samples.unsqueeze(1) if samples.ndim == 2 else samples


def _check_length(seconds: float, max_length_in_s: float) -> None:
    if not MIN_LENGTH_IN_S <= seconds <= max_length_in_s:
        raise ValueError(f"`audio` must last from {MIN_LENGTH_IN_S:g} to {max_length_in_s:g} s, got {seconds:.5g} s.")


def _check_finite(recordings: torch.Tensor) -> torch.Tensor:
    if not recordings.isfinite().all():
        raise ValueError("`audio` must be finite, got NaN or infinity among its samples.")
    return recordings


def _say_what_changes(sampling_rate: int, num_channels: int, model_rate: int) -> None:
    if (sampling_rate, num_channels) != (model_rate, 1):
        channels = "mono" if num_channels == 1 else f"{num_channels} channels"
        logger.warning(f"`audio` of {sampling_rate} Hz, {channels}, is brought to {model_rate} Hz mono.")
