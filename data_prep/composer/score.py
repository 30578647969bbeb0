"""The score every part is written against: notes, chords bar by bar, and step patterns turned into beats."""

import math
from dataclasses import dataclass, field

import numpy as np

from data_prep.composer.harmony import Chord, Key, four_part_voicing
from data_prep.composer.moods import Mood
from data_prep.composer.style import Style


SWELL = 6  # how much louder, in MIDI velocity, the middle of a four-bar phrase is


@dataclass(frozen=True)
class Note:
    """One note; `start` and `duration` are in beats, `pitch` is a MIDI number (or a General MIDI drum)."""

    start: float
    duration: float
    pitch: int
    velocity: int


@dataclass(frozen=True)
class ChordSpan:
    """A chord that sounds for `num_steps` pattern steps from `step` of its bar."""

    step: int
    num_steps: int
    chord: Chord


@dataclass(frozen=True)
class PatternNote:
    """A note of a step pattern: where it starts, how many steps it lasts and which character wrote it."""

    step: int
    num_steps: int
    symbol: str


def parse_pattern(pattern: str) -> list[PatternNote]:
    """Reads a step pattern; `.` is silence, `-` holds the note before it, anything else starts a note."""
    notes: list[PatternNote] = []
    for step, symbol in enumerate(pattern):
        if symbol == "-" and notes:
            held = notes[-1]
            notes[-1] = PatternNote(held.step, step - held.step + 1, held.symbol)
        elif symbol not in "-.":
            notes.append(PatternNote(step, 1, symbol))
    return notes


@dataclass
class Score:
    """What all parts of a piece share.

    Args:
        key: The key.
        style: The style.
        mood: The mood.
        bars: The chords of each bar.
        generator: Source of all random choices, drawn from in the order in which the parts are written.
    """

    key: Key
    style: Style
    mood: Mood
    bars: list[list[ChordSpan]]
    generator: np.random.Generator
    _voices: list[list[list[int]]] = field(default_factory=list)

    @property
    def num_bars(self) -> int:
        return len(self.bars)

    def choose(self, options):
        """Draws one element of a sequence."""
        return options[int(self.generator.integers(len(options)))]

    def happens(self, chance: float) -> bool:
        """Draws an event of the given probability."""
        return bool(self.generator.random() < chance)

    def beat(self, bar: int, step: float) -> float:
        """Turns a step of a bar into beats since the first bar, with the style's swing."""
        style = self.style
        within_bar = step / style.steps_per_beat
        pulse, fraction = divmod(within_bar / style.swing_unit, 1.0)
        if fraction < 0.5:
            fraction *= 2 * style.swing
        else:
            fraction = style.swing + (fraction - 0.5) * 2 * (1 - style.swing)
        return bar * style.beats_per_bar + (pulse + fraction) * style.swing_unit

    def chord_at(self, bar: int, step: int) -> Chord:
        """The chord that sounds on a step; bars beyond the last repeat the first."""
        spans = self.bars[bar % self.num_bars]
        return next(span.chord for span in reversed(spans) if span.step <= step)

    def note(self, bar: int, written: PatternNote, pitch: int, *, gate: float = 0.95, offset: int = 0) -> Note:
        """Plays a pattern note: accents become velocity, `gate` is the sounding share of the written length."""
        start = self.beat(bar, written.step)
        end = self.beat(bar, written.step + written.num_steps)
        swell = 0 if self.style.is_sequenced else round(SWELL * math.sin(math.pi * (bar % 4 + written.step / 16) / 4))
        return Note(start, max(0.05, (end - start) * gate), pitch, self.velocity(written.symbol, offset + swell))

    def velocity(self, symbol: str = "x", offset: int = 0) -> int:
        """Draws a MIDI velocity around the mood's level for an accented `X`, plain or soft `o` note."""
        accent = {"X": 12, "o": -24}.get(symbol, 0)
        spread = 2.0 if self.style.is_sequenced else 4.5
        return int(np.clip(self.mood.velocity + accent + offset + self.generator.normal(0, spread), 18, 127))

    def voices(self) -> list[list[list[int]]]:
        """Four-part harmony of every chord, `[bar][chord][voice]`, written once and shared by all voices."""
        if not self._voices:
            previous = None
            for spans in self.bars:
                bar_voices = []
                for span in spans:
                    previous = four_part_voicing(span.chord, previous, self.generator)
                    bar_voices.append(previous)
                self._voices.append(bar_voices)
        return self._voices
