"""What is played, as the network is told it: beat, bar, key and chords at every latent frame.

A tempo written in a caption hardly reaches a network of this kind; the place of each frame inside its beat, its bar and
its chord does. Every group of numbers is all zeros where it is not known.

Shapes: T latent frames.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
from pychord import Chord


MIN_TEMPO_BPM, MAX_TEMPO_BPM = 40.0, 220.0
BEATS_PER_BAR = {"3/4": 3, "4/4": 4}
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "sharp": 1, "b": -1, "♭": -1, "flat": -1}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# The rows of a music curve.
RHYTHM = slice(0, 10)  # sine and cosine of the beat, twice and four times it, and of the bar; log tempo; known
KEY = slice(10, 36)  # tonic (12), scale (12), major, known
CHORD = slice(36, 61)  # chord tones (12), bass (12), known
NUM_MUSIC_FEATURES = 61

_KEY_NAME = re.compile(r"([A-Ga-g])[ -]?(#|♯|sharp|b|♭|flat|)[ -]*(major|minor|maj|min|m|)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Music:
    """What is known of the music of a clip; `None` where nothing is.

    Args:
        tempo_bpm: Beats a minute.
        first_beat_in_s: When a first beat of a bar falls, in seconds after the clip's start.
        time_signature: `"4/4"` or `"3/4"`.
        key: Tonic and mode, such as `"Bb minor"`.
        chords: `(second, symbol)` where each chord begins, rising; a chord lasts until the next.
    """

    tempo_bpm: float | None = None
    first_beat_in_s: float | None = None
    time_signature: str | None = None
    key: str | None = None
    chords: tuple[tuple[float, str], ...] | None = None

    @property
    def bar_in_s(self) -> float | None:
        """Length of a bar in seconds, of four beats where the metre is unknown; `None` if the tempo is."""
        return None if self.tempo_bpm is None else BEATS_PER_BAR[self.time_signature or "4/4"] * 60 / self.tempo_bpm

    def without(self, *, rhythm: bool = False, key: bool = False, chords: bool = False) -> Music:
        """Returns it with the tempo, the key or the chords unknown."""
        unknown = {"tempo_bpm": None, "time_signature": None} if rhythm else {}
        return replace(self, **unknown, **({"key": None} if key else {}), **({"chords": None} if chords else {}))


def parse_key(name: str) -> tuple[int, str]:
    """Reads a key such as "A minor", "Bb major", "f sharp minor" or "F#m".

    Returns:
        The tonic in semitones above C, and "major" or "minor".
    """
    match = _KEY_NAME.fullmatch(name.strip()) if isinstance(name, str) else None
    if match is None:
        raise ValueError(f'`key` must be a tonic and a mode, such as "A minor" or "Eb major", got {name!r}.')
    letter, accidental, mode = match.groups()
    is_minor = mode == "m" or mode.lower() in ("minor", "min")
    tonic = (SEMITONES[letter.upper()] + ACCIDENTALS[accidental.lower()]) % 12
    return tonic, "minor" if is_minor else "major"


@functools.lru_cache(maxsize=4096)
def parse_chord(symbol: str) -> tuple[tuple[int, ...], int]:
    """Reads a chord symbol such as "Am7", "F#dim", "Bbmaj7" or "C/G".

    Returns:
        The pitch classes of the chord and that of its bass.
    """
    try:
        chord = Chord(symbol)
        pitches = chord.components(visible=False)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f'`chords` must hold symbols such as "Am", "F#m7b5" or "C/G", got {symbol!r}: {error}.'
        ) from error
    bass = _pitch_class(chord.on or chord.root)
    return tuple(sorted({pitch % 12 for pitch in pitches})), bass


def is_chord_point(value: object) -> bool:
    """Whether a value is a `(second, symbol)` pair."""
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and isinstance(value[0], Real)
        and not isinstance(value[0], bool)
        and math.isfinite(value[0])
        and isinstance(value[1], str)
    )


def _pitch_class(note: str) -> int:
    return (SEMITONES[note[0]] + note.count("#") - note.count("b")) % 12


def music_curve(music: Music, times_in_s: Sequence[float], frame_in_s: float) -> np.ndarray:
    """Describes what is played at every frame.

    Args:
        music: What is known.
        times_in_s: The middle of every frame, in seconds after the clip's start.
        frame_in_s: Length of a frame; a chord that ends inside one counts for its share.

    Returns:
        Features of shape `(frames, 61)` in float32, in the order of `RHYTHM`, `KEY` and `CHORD`.
    """
    times = np.asarray(times_in_s, dtype=np.float64)
    curve = np.zeros((len(times), NUM_MUSIC_FEATURES), dtype=np.float32)
    if music.tempo_bpm is not None:
        curve[:, RHYTHM] = _rhythm(music, times)
    if music.key is not None:
        curve[:, KEY] = _key(music.key)
    if music.chords:
        curve[:, CHORD] = _chords(music.chords, times, frame_in_s)
    return curve


def _rhythm(music: Music, times: np.ndarray) -> np.ndarray:
    """Where in its beat and its bar each frame lies, `(frames, 10)`."""
    beat = (times - (music.first_beat_in_s or 0.0)) * music.tempo_bpm / 60
    phases = [2 * math.pi * factor * beat for factor in (1, 2, 4)] if music.first_beat_in_s is not None else []
    columns = [wave(phase) for phase in phases for wave in (np.sin, np.cos)] or [np.zeros_like(times)] * 6
    if phases and music.time_signature is not None:
        bar = phases[0] / BEATS_PER_BAR[music.time_signature]
        columns += [np.sin(bar), np.cos(bar)]
    else:
        columns += [np.zeros_like(times)] * 2
    columns += [np.full_like(times, math.log2(music.tempo_bpm / 110)), np.ones_like(times)]
    return np.stack(columns, axis=1)


def _key(name: str) -> np.ndarray:
    """Tonic, scale and mode, `(26,)`."""
    tonic, mode = parse_key(name)
    tones = np.zeros((2, 12))
    tones[0, tonic] = 1
    tones[1, [(tonic + interval) % 12 for interval in SCALES[mode]]] = 1
    return np.concatenate([*tones, [float(mode == "major"), 1.0]])


def _chords(chords: Sequence[tuple[float, str]], times: np.ndarray, frame_in_s: float) -> np.ndarray:
    """The tones and the bass of the chord at each frame, `(frames, 25)`; none before the first."""
    table = np.zeros((len(chords), 25))
    for row, (_, symbol) in zip(table, chords, strict=True):
        tones, bass = parse_chord(symbol)
        row[list(tones)] = 1
        row[12 + bass] = 1
        row[24] = 1
    starts = np.array([second for second, _ in chords])
    ends = np.append(starts[1:], np.inf)
    first, last = times[:, None] - frame_in_s / 2, times[:, None] + frame_in_s / 2
    shares = (np.minimum(ends, last) - np.maximum(starts, first)).clip(min=0) / frame_in_s  # (frames, chords)
    return shares @ table
