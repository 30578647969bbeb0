"""What a service allows of sound files that somebody sends."""

from __future__ import annotations

from pathlib import Path

from pipelines.service.errors import ServiceError
from qamdt.sound_files import measure_length, open_sound


MAX_CHANNELS = 8
RATES = range(1000, 384_001)


def check_sound(path: Path, max_seconds: float) -> float:
    """Refuses what is no sound file, or too long; no more is decoded than that takes.

    Returns:
        Its length in seconds: what can be decoded, whatever its header says.

    Raises:
        ServiceError: It is refused.
    """
    try:
        with open_sound(path) as file:
            rate, num_channels = file.samplerate, file.channels
        if rate not in RATES or not 1 <= num_channels <= MAX_CHANNELS:
            raise ServiceError(
                "invalid_request",
                f"The file must have {RATES[0]} to {RATES[-1]} samples per second and at most {MAX_CHANNELS} channels, "
                f"got {rate} and {num_channels}.",
            )
        seconds = measure_length(path, max_length_in_s=max_seconds).duration_in_s
    except ValueError as error:  # whose message names the path
        raise ServiceError("invalid_request", "The file must be a wav, flac, ogg, mp3 or opus file.") from error
    if seconds > max_seconds:
        raise ServiceError("too_large", f"The file may be at most {max_seconds:g} s long here, and it is longer.")
    if seconds == 0:
        raise ServiceError("invalid_request", "The file holds no sound that can be decoded.")
    return seconds
