"""Kinds of sound files that are written, by the suffix of their names, and the sampling rates that each can hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AudioFormat:
    """How libsndfile calls a kind of sound file.

    Args:
        container: Its container.
        codec: What is inside; what the container usually holds when `None`.
        sampling_rates: The rates in Hz that it can hold; any when empty.
    """

    container: str
    codec: str | None = None
    sampling_rates: tuple[int, ...] = ()


AUDIO_FORMATS = {
    ".wav": AudioFormat("WAV"),
    ".flac": AudioFormat("FLAC"),
    ".ogg": AudioFormat("OGG", "VORBIS"),
    ".opus": AudioFormat("OGG", "OPUS", (8000, 12_000, 16_000, 24_000, 48_000)),
    ".mp3": AudioFormat("MP3", None, (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)),
}
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 8000, 192_000


def find_audio_format(path: str | os.PathLike, sampling_rate: int | None = None, *, name: str = "path") -> AudioFormat:
    """Returns the kind of sound file that a path names.

    Args:
        path: Where the file is to be.
        sampling_rate: The rate in Hz that it is to hold, where that is known.
        name: The argument to name in errors.

    Raises:
        ValueError: No kind has such a suffix, or it cannot hold the rate.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in AUDIO_FORMATS:
        raise ValueError(f"`{name}` must end in one of {', '.join(AUDIO_FORMATS)}, got {str(path)!r}.")
    audio_format = AUDIO_FORMATS[suffix]
    rates = audio_format.sampling_rates
    if sampling_rate is not None and rates and sampling_rate not in rates:
        raise ValueError(
            f"`sampling_rate` must be one of {', '.join(map(str, rates))} Hz for a {suffix} file, got {sampling_rate}; "
            "take another rate or another suffix."
        )
    return audio_format
