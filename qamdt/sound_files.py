"""Sound files as strangers make them: which ones a folder holds, how long they really are, and their samples in blocks.

A header is a claim: a download that stopped, or a hand that edited it, promises samples that are not there. So a length
is what can be decoded, and memory follows what is read and not what is promised.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from qamdt.files import is_text


# What libsndfile reads, by name; what is inside decides.
READABLE_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
)  # fmt: skip
# Sound that libsndfile cannot read: a folder's report names it, so that nobody thinks it was taken.
UNREADABLE_SUFFIXES = (
    ".m4a", ".m4b", ".mp4", ".aac", ".wma", ".webm", ".mka", ".alac", ".ape", ".wv", ".mpc", ".tta", ".dsf", ".dff",
    ".ac3", ".amr", ".ra",
)  # fmt: skip
CUT_TOLERANCE_IN_S = 0.1  # samples that a compressed file lacks or has too many by nature
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 1_000_000  # Hz; what lies outside is no sound that anyone recorded
_MOST_NAMES_BEHIND_LINK = 1000
_VALUES_PER_BLOCK = 1 << 20
_SAMPLES_PER_STEP = 1 << 10
_MOST_SAMPLES = 1 << 48  # what libsndfile gives as the length of a stream of unknown length is above it
_UNKNOWN_LENGTHS = (0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)  # what programs say that write into a pipe


@dataclass(frozen=True, kw_only=True)
class SoundLength:
    """How long a sound file is.

    Args:
        duration_in_s: Length of what can be decoded.
        missing_in_s: How much more its header promises; infinite where the file is cut and does not say how much.
    """

    duration_in_s: float
    missing_in_s: float

    @property
    def is_cut(self) -> bool:
        """Whether the file ends before it should."""
        return self.missing_in_s > CUT_TOLERANCE_IN_S


def list_sound_files(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Finds the sound files of a folder, to the bottom, in the order of their names.

    Returns:
        The files to read, and those that cannot be read, each with the reason. Hidden files and folders are passed over.
    """
    files, refused = [], []
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not is_hidden and _leads_out_to_sound(path, root):
            refused.append(
                (path, "it is a link to a folder of sound, which is not followed; name that folder itself.")
            )
        if is_hidden or suffix not in READABLE_SUFFIXES + UNREADABLE_SUFFIXES or path.is_dir():
            continue
        if suffix in UNREADABLE_SUFFIXES:
            refused.append((path, f"{suffix} files cannot be read; convert it, for example with ffmpeg, to flac."))
        elif not is_text(os.fspath(path)):
            refused.append((path, "its name is not UTF-8; rename it."))
        elif not Path(os.path.realpath(path)).is_relative_to(root):
            refused.append((path, f"it is a link that leads out of {str(folder)!r}; copy the file into the folder."))
        elif not path.is_file():
            refused.append((path, "it is no file, or a link to nothing."))
        else:
            files.append(path)
    return files, refused


def _leads_out_to_sound(path: Path, root: Path) -> bool:
    """Whether a path is a link to a folder of sound that lies elsewhere; what lies in `root` is found without the link."""
    is_link = path.is_symlink() and path.is_dir()
    return is_link and not Path(os.path.realpath(path)).is_relative_to(root) and _holds_sound(path)


def _holds_sound(folder: Path) -> bool:
    """Whether there is sound in a folder, or so much else that it would take long to know, as behind a link to `/`."""
    names = (name for _, folders, files in os.walk(folder) for name in (*folders, *files))
    first = list(islice(names, _MOST_NAMES_BEHIND_LINK + 1))
    has_more = len(first) > _MOST_NAMES_BEHIND_LINK
    return has_more or any(Path(name).suffix.lower() in READABLE_SUFFIXES for name in first)


def open_sound(path: str | os.PathLike) -> soundfile.SoundFile:
    """Opens a sound file for reading.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, or its sampling rate is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an audio file, got {str(path)!r}, which does not exist.")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, UnicodeEncodeError) as error:
        raise ValueError(
            f"`path` must be a readable wav, flac, ogg, mp3 or opus file, got {str(path)!r}: {error} "
            "Convert it, for example with ffmpeg."
        ) from error
    if not MIN_SAMPLING_RATE <= file.samplerate <= MAX_SAMPLING_RATE:
        file.close()
        raise ValueError(
            f"{str(path)!r} must have a sampling rate from {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} Hz, "
            f"got {file.samplerate}."
        )
    return file


def iterate_blocks(
    file: soundfile.SoundFile, num_samples: int | None = None, *, multiple_of: int = 1
) -> Iterator[np.ndarray]:
    """Yields the next samples `(samples, channels)` in float32 in blocks of bounded size, until there are no more.

    A file that is damaged, or whose header promises more than there is, ends where it can be decoded no further.

    Args:
        file: An open file.
        num_samples: How many to read; all that are left when `None`.
        multiple_of: Blocks hold a multiple of so many samples, the last one excepted.

    Raises:
        ValueError: Not even the first of the samples can be decoded.
    """
    size = max(_VALUES_PER_BLOCK // file.channels // multiple_of, 1) * multiple_of
    first = place = file.tell()
    while num_samples is None or place - first < num_samples:
        count = size if num_samples is None else min(size, first + num_samples - place)
        fault = None
        try:
            block = file.read(count, "float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            block, fault = _read_until_fault(Path(file.name), place, count), error
        place += len(block)
        if fault is not None and place == first:
            raise ValueError(f"{str(file.name)!r} cannot be decoded: {fault}") from fault
        if len(block):
            yield block
        if fault is not None or not len(block):
            return


def _read_until_fault(path: Path, place: int, num_samples: int) -> np.ndarray:
    """Reads samples `(samples, channels)` in small steps, as what a step decodes before a fault is lost."""
    with open_sound(path) as file:  # anew, as a fault leaves libsndfile in a bad state
        steps = [np.zeros((0, file.channels), np.float32)]
        try:
            file.seek(place)
            for start in range(0, num_samples, _SAMPLES_PER_STEP):
                steps.append(file.read(min(_SAMPLES_PER_STEP, num_samples - start), "float32", always_2d=True))
        except soundfile.LibsndfileError:
            pass
        return np.concatenate(steps)


def read_samples(
    path: str | os.PathLike, *, start_in_s: float = 0.0, duration_in_s: float | None = None, is_mixed: bool = False
) -> tuple[np.ndarray, int]:
    """Reads a part of a sound file.

    Args:
        path: The file.
        start_in_s: Where the part begins; beyond the end of the file there are no samples.
        duration_in_s: Its length; the rest of the file when `None`.
        is_mixed: Whether channels are averaged while they are read, so that many of them take no more memory than one.

    Returns:
        Samples `(samples, channels)` in float32, as many as there are, and the sampling rate in Hz.
    """
    with open_sound(path) as file:
        rate, channels = file.samplerate, 1 if is_mixed else file.channels
        try:
            if start_in_s > 0:
                file.seek(min(round(start_in_s * rate), file.frames))
        except soundfile.LibsndfileError:  # the header promises this place, but the file ends before it
            return np.zeros((0, channels), np.float32), rate
        blocks = iterate_blocks(file, None if duration_in_s is None else round(duration_in_s * rate))
        blocks = [block.mean(axis=1, keepdims=True) if is_mixed else block for block in blocks]
    return np.concatenate([np.zeros((0, channels), np.float32), *blocks]), rate


def measure_length(path: str | os.PathLike, *, max_length_in_s: float = math.inf) -> SoundLength:
    """Measures how long a sound file is, decoding it whole only if its header promises what is not there.

    Args:
        path: The file.
        max_length_in_s: Where it is longer than this, the length may be any that is longer, too: no more is decoded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded.
    """
    with open_sound(path) as file:
        rate, num_samples = file.samplerate, file.frames
        is_whole = _has_sample(file, num_samples - 1)
    missing_in_s = math.inf if is_whole and _is_cut_off(Path(path)) else 0.0
    if not is_whole:
        with open_sound(path) as file:  # anew, as a seek that failed leaves libsndfile in a bad state
            promised, num_samples = num_samples, _count_samples(file, max_length_in_s * rate)
        missing_in_s = max(promised - num_samples, 0) / rate if promised < _MOST_SAMPLES else 0.0
    return SoundLength(duration_in_s=num_samples / rate, missing_in_s=missing_in_s)


def _has_sample(file: soundfile.SoundFile, number: int) -> bool:
    try:
        file.seek(max(number, 0))
        return len(file.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


def _count_samples(file: soundfile.SoundFile, maximum: float) -> int:
    """Decodes a file until its end or its first fault; in small steps, as what a step decodes before a fault is lost."""
    num_samples = 0
    try:
        while num_samples <= maximum and (count := len(file.read(_SAMPLES_PER_STEP))):
            num_samples += count
    except soundfile.LibsndfileError:
        pass
    return num_samples


def _is_cut_off(path: Path) -> bool:
    """Whether a file ends before its container says that it does, which libsndfile passes over."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(40)
        if head.startswith(b"OggS"):
            return not _has_last_page(file, size)
        if head.startswith(b".snd"):
            start, length = struct.unpack(">II", head[4:12])
            return length not in _UNKNOWN_LENGTHS and start + length > size
        if head.startswith(b"riff"):  # Sony Wave64
            return int.from_bytes(head[16:24], "little") > size
        if head.startswith(b"RF64"):  # whose first chunk, ds64, holds the length of all that follows the first 8 bytes
            return int.from_bytes(head[20:28], "little") + 8 > size
        if head.startswith((b"RIFF", b"FORM")):
            return _find_end_of_sound(file, "<" if head.startswith(b"RIFF") else ">") > size
    return False


def _find_end_of_sound(file: BinaryIO, order: str) -> int:
    """Returns where the sound of a WAV or AIFF file ends according to its chunks; 0 where they do not say."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack(f"{order}4sI", head)
        if name in (b"data", b"SSND"):
            return 0 if length in _UNKNOWN_LENGTHS else file.tell() + length
        file.seek(length + length % 2, os.SEEK_CUR)
    return 0


def _has_last_page(file: BinaryIO, size: int) -> bool:
    """Whether the last page of an Ogg file is marked as the last one, and whole."""
    file.seek(max(size - (1 << 17), 0))
    tail = file.read()
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return False
    num_segments = tail[start + 26]
    table = tail[start + 27 : start + 27 + num_segments]
    is_whole = len(table) == num_segments and start + 27 + num_segments + sum(table) <= len(tail)
    return bool(tail[start + 5] & 4) and is_whole
