"""What `bpm`, `key`, `chords` and `time_signature` may be, and the music that a clip is planned to be.

An argument counts before the prompt, and the prompt before the plan: what nobody said is drawn, from the range of a
word such as "slow", from what the style in the prompt is mostly played at, or from all that music is played at. A
network that is told no beat makes none that is clear.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch

from qamdt.music import (
    BEATS_PER_BAR,
    MAX_TEMPO_BPM,
    MIN_TEMPO_BPM,
    SCALES,
    Music,
    is_chord_point,
    parse_chord,
    parse_key,
)
from qamdt.prompt_music import read_prompt


Chords = str | Sequence[tuple[float, str]]

NOTHING = Music()  # is known
ANY_TEMPO_BPM = (72, 138)
# Degrees of the scale, a bar each.
PROGRESSIONS = {
    "major": ("1 5 6 4", "1 6 4 5", "1 4 1 5", "1 4 6 5", "1 3 4 5", "1 4 5 1", "1 2 5 1"),
    "minor": ("1 6 4 5", "1 4 5 1", "1 7 6 5", "1 4 1 5", "1 6 7 1", "1 6 3 5", "1 1 4 5"),
}
_NOTE_NAMES = {
    "major": ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"),
    "minor": ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"),
}
_NATURALS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_TRIADS = {(4, 7): "", (3, 7): "m", (3, 6): "dim"}
_MINOR_WORDS = re.compile(r"\b(?:sad|dark|melanchol\w+|tense|mysterious|ominous|gloomy|sombre|somber|tragic|minor)\b")
_MAJOR_WORDS = re.compile(r"\b(?:happy|cheerful|joyful|joyous|bright|playful|triumphant|major|sunny|festive)\b")
_UNPITCHED = re.compile(r"\b(?:drum solo|solo drums?|drums? only|only drums|percussion only|drum (?:loop|beat))\b")


@dataclass(frozen=True, kw_only=True)
class MusicRequest:
    """What a call asks of one clip; `None` where it says nothing.

    Args:
        bpm: Beats a minute.
        key: Tonic and mode, such as "A minor".
        chords: Symbols with spaces between, such as "Am F C G", a bar each and over again; bars of several chords are
            set apart by bars, as in "Am | F G | C". Or `(second, symbol)` tuples.
        time_signature: "4/4" or "3/4".
    """

    bpm: float | None = None
    key: str | None = None
    chords: Chords | None = None
    time_signature: str | None = None

    def __post_init__(self):
        is_number = isinstance(self.bpm, Real) and not isinstance(self.bpm, bool)
        if self.bpm is not None and not (is_number and MIN_TEMPO_BPM <= self.bpm <= MAX_TEMPO_BPM):
            raise ValueError(
                f"`bpm` must be a number from {MIN_TEMPO_BPM:g} to {MAX_TEMPO_BPM:g} beats a minute, got {self.bpm!r}."
            )
        if self.key is not None:
            parse_key(self.key)
        if self.time_signature is not None and self.time_signature not in BEATS_PER_BAR:
            raise ValueError(f"`time_signature` must be one of {list(BEATS_PER_BAR)}, got {self.time_signature!r}.")
        if self.chords is not None:
            _check_chords(self.chords)


def resolve_musics(
    prompts: list[str],
    requests: list[MusicRequest],
    audio_length_in_s: float,
    num_waveforms_per_prompt: int,
    generator: torch.Generator | list[torch.Generator] | None,
    *,
    plan: bool,
    is_loop: bool = False,
    heard: list[Music] | None = None,
) -> list[Music]:
    """Decides what is played in each waveform of a call; waveforms of one prompt get plans of their own.

    Args:
        prompts: The prompts.
        requests: What is asked for each prompt.
        audio_length_in_s: Length of the clips.
        num_waveforms_per_prompt: Waveforms for each prompt, in a row in the result.
        generator: Source of what is drawn, as in a call.
        plan: Whether what nobody said is drawn.
        is_loop: Whether a clip goes on with its beginning; tempi are then changed a little, to whole bars.
        heard: What is to be heard in the recording that each waveform begins with, if there is one.
    """
    batch_size = len(prompts) * num_waveforms_per_prompt
    sources = generator if isinstance(generator, list) else [generator]
    seeds = [_draw_seed(source) for source in sources]
    plans = [np.random.default_rng([seeds[number % len(seeds)], number // len(seeds)]) for number in range(batch_size)]
    return [
        resolve_music(
            prompts[clip],
            requests[clip],
            audio_length_in_s,
            plans[number],
            plan=plan,
            is_loop=is_loop,
            heard=NOTHING if heard is None else heard[number],
        )
        for number in range(batch_size)
        for clip in (number // num_waveforms_per_prompt,)
    ]


def requests_per_prompt(
    num_prompts: int, *, bpm: object, key: object, chords: object, time_signature: object
) -> list[MusicRequest]:
    """Reads the arguments of a call, each one for all prompts or a list with one for each.

    Raises:
        ValueError: A value makes no sense, or a list has another length than the prompts.
    """
    values = {"bpm": bpm, "key": key, "chords": chords, "time_signature": time_signature}
    columns = {}
    for name, value in values.items():
        is_shared = not isinstance(value, list) or (name == "chords" and all(is_chord_point(v) for v in value))
        column = [value] * num_prompts if is_shared else value
        if len(column) != num_prompts:
            raise ValueError(
                f"`{name}` must be one value for all prompts or a list with one for each of the {num_prompts} prompts, "
                f"got a list of {len(column)}: {value!r}."
            )
        columns[name] = column
    return [MusicRequest(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = None if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device))


def said_music(prompt: str, request: MusicRequest) -> Music:
    """The tempo, metre and key that a request says or, where it does not, its prompt; chords are laid out later."""
    said = read_prompt(prompt)
    return Music(
        tempo_bpm=request.bpm or said.tempo_bpm,
        time_signature=request.time_signature or said.time_signature,
        key=request.key or said.key,
    )


def resolve_music(
    prompt: str,
    request: MusicRequest,
    audio_length_in_s: float,
    generator: np.random.Generator,
    *,
    plan: bool,
    is_loop: bool = False,
    heard: Music = NOTHING,
) -> Music:
    """Decides what is played in one clip.

    Args:
        prompt: The prompt, from which what the request leaves open is read.
        request: What the call asks for.
        audio_length_in_s: Length of the clip.
        generator: Source of what is drawn.
        plan: Whether what nobody said is drawn; it stays unknown otherwise.
        is_loop: Whether the clip goes on with its beginning; a tempo that is not heard is changed a little, to whole bars.
        heard: What is to be heard in the recording that the clip begins with: its beats, and what the call leaves open.
    """
    said = said_music(prompt, request)
    tempo_bpm, time_signature, key = heard.tempo_bpm or said.tempo_bpm, said.time_signature, said.key or heard.key
    tempo_range_bpm = read_prompt(prompt).tempo_range_bpm
    is_chord_per_bar = isinstance(request.chords, str)
    if tempo_bpm is None and (plan or tempo_range_bpm or is_chord_per_bar or time_signature):
        slowest, fastest = tempo_range_bpm or ANY_TEMPO_BPM
        tempo_bpm = float(generator.integers(slowest, fastest + 1))
    if plan and time_signature is None:
        time_signature = "4/4"
    if plan and key is None and request.chords is None and not _UNPITCHED.search(prompt.lower()):
        key = _draw_key(prompt, generator)

    bar_in_s = None if tempo_bpm is None else BEATS_PER_BAR[time_signature or "4/4"] * 60 / tempo_bpm
    if is_loop and bar_in_s is not None and heard.tempo_bpm is None:
        whole_bar_in_s = audio_length_in_s / max(1, round(audio_length_in_s / bar_in_s))
        tempo_bpm, bar_in_s = tempo_bpm * bar_in_s / whole_bar_in_s, whole_bar_in_s
    chords = request.chords
    if chords is None and plan and key is not None:
        chords = _draw_chords(key, generator)
    if isinstance(chords, str):
        chords = lay_out_chords(chords, bar_in_s, audio_length_in_s)
    return Music(
        tempo_bpm=tempo_bpm,
        first_beat_in_s=None if tempo_bpm is None else heard.first_beat_in_s or 0.0,
        time_signature=time_signature,
        key=None if key is None else _spell_key(key),
        chords=None if chords is None else tuple((float(second), symbol) for second, symbol in chords),
    )


def lay_out_chords(chords: str, bar_in_s: float, audio_length_in_s: float) -> list[tuple[float, str]]:
    """Lays chords out over the bars of a clip, over again where they end: `(second, symbol)` where each begins."""
    bars = [bar.split() for bar in chords.strip(" |").split("|")] if "|" in chords else [[c] for c in chords.split()]
    laid_out: list[tuple[float, str]] = []
    number = 0
    while number * bar_in_s < audio_length_in_s:
        bar = bars[number % len(bars)]
        for place, symbol in enumerate(bar):
            if not laid_out or laid_out[-1][1] != symbol:
                laid_out.append((round((number + place / len(bar)) * bar_in_s, 4), symbol))
        number += 1
    return laid_out


def _check_chords(chords: object) -> None:
    if isinstance(chords, str):
        symbols = chords.replace("|", " ").split()
        if not symbols or any(not bar.split() for bar in chords.strip(" |").split("|")):
            raise ValueError(
                f'`chords` must name a chord for each bar, such as "Am F C G" or "C | F G", got {chords!r}.'
            )
    elif isinstance(chords, Sequence) and chords and all(is_chord_point(point) for point in chords):
        seconds = [second for second, _ in chords]
        if seconds[0] < 0 or any(np.diff(seconds) <= 0):
            raise ValueError(f"`chords` must have rising seconds from 0 on, got {seconds}.")
        symbols = [symbol for _, symbol in chords]
    else:
        raise ValueError(
            f'`chords` must be symbols such as "Am F C G", a bar each, or a list of (second, symbol) tuples, got {chords!r}.'
        )
    for symbol in symbols:
        parse_chord(symbol)


def _spell_key(name: str) -> str:
    tonic, mode = parse_key(name)
    return f"{_NOTE_NAMES[mode][tonic]} {mode}"


def _draw_key(prompt: str, generator: np.random.Generator) -> str:
    """Any tonic, and the mode that the mood asks for."""
    tonic, is_minor = int(generator.integers(12)), bool(generator.random() < 0.5)
    text = prompt.lower()
    if _MINOR_WORDS.search(text):
        is_minor = True
    elif _MAJOR_WORDS.search(text):
        is_minor = False
    mode = "minor" if is_minor else "major"
    return f"{_NOTE_NAMES[mode][tonic]} {mode}"


def _draw_chords(key: str, generator: np.random.Generator) -> str:
    """A progression of triads in a key; in minor the fifth degree is major, as it leads home."""
    progressions = PROGRESSIONS[parse_key(key)[1]]
    degrees = progressions[int(generator.integers(len(progressions)))].split()
    return " ".join(_triad(key, int(degree)) for degree in degrees)


def _triad(key: str, degree: int) -> str:
    tonic, mode = parse_key(key)
    scale = list(SCALES[mode])
    if mode == "minor" and degree == 5:
        scale[6] = 11
    tones = [scale[(degree - 1 + step) % 7] for step in (0, 2, 4)]
    intervals = tuple((tone - tones[0]) % 12 for tone in tones[1:])
    return _spell_degree(key, degree, (tonic + tones[0]) % 12) + _TRIADS[intervals]


def _spell_degree(key: str, degree: int, pitch_class: int) -> str:
    """Names a note of a key by the letter that its degree has: the fifth of F# major is C#, not Db."""
    letters = list(_NATURALS)
    letter = letters[(letters.index(key[0]) + degree - 1) % 7]
    shift = (pitch_class - _NATURALS[letter] + 6) % 12 - 6
    name = letter + ("#" * shift if shift > 0 else "b" * -shift)
    is_plain = abs(shift) <= 1 and name not in ("E#", "Fb", "B#", "Cb")  # which players and parsers stumble over
    return name if is_plain else _NOTE_NAMES["major"][pitch_class]
