"""Keys, diatonic chords and voice-leading: the small part of music theory the composer needs.

Pitches are MIDI numbers (60 is middle C), pitch classes are 0 (C) to 11 (B), scale degrees are 1 to 7.
"""

from dataclasses import dataclass

import numpy as np


MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11)
MINOR_SCALE = (0, 2, 3, 5, 7, 8, 10)
MAJOR_KEY_NAMES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MINOR_KEY_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
# How chords are written, by the semitones of their tones above the root.
CHORD_SUFFIXES = {
    (4, 7): "",
    (3, 7): "m",
    (3, 6): "dim",
    (4, 7, 11): "maj7",
    (4, 7, 10): "7",
    (3, 7, 10): "m7",
    (3, 6, 10): "m7b5",
}


@dataclass(frozen=True)
class Key:
    """A major or minor key.

    Args:
        tonic: Pitch class of the first degree.
        mode: "major" or "minor".
    """

    tonic: int
    mode: str

    @property
    def name(self) -> str:
        names = MAJOR_KEY_NAMES if self.mode == "major" else MINOR_KEY_NAMES
        return f"{names[self.tonic]} {self.mode}"

    def scale(self, degree: int = 1) -> tuple[int, ...]:
        """Pitch classes in use over the chord on `degree`; the dominant of a minor key raises the seventh degree."""
        intervals = MAJOR_SCALE if self.mode == "major" else MINOR_SCALE
        if self.mode == "minor" and degree == 5:
            intervals = (*MINOR_SCALE[:6], 11)
        return tuple((self.tonic + interval) % 12 for interval in intervals)


@dataclass(frozen=True)
class Chord:
    """A chord stacked in thirds on one degree of a key.

    Args:
        key: The key whose scale supplies the tones.
        degree: Scale degree of the root, 1 to 7.
        size: Number of tones: 3 for a triad, 4 for a seventh chord, 5 for a ninth chord.
    """

    key: Key
    degree: int
    size: int = 3

    @property
    def scale(self) -> tuple[int, ...]:
        return self.key.scale(self.degree)

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        return tuple(self.scale[(self.degree - 1 + 2 * k) % 7] for k in range(self.size))

    @property
    def root(self) -> int:
        return self.pitch_classes[0]

    @property
    def symbol(self) -> str:
        """How the chord is written, such as "Bbm7"; a ninth is a colour that the symbol leaves out."""
        intervals = tuple((pitch_class - self.root) % 12 for pitch_class in self.pitch_classes[1:4])
        names = MAJOR_KEY_NAMES if self.key.mode == "major" else MINOR_KEY_NAMES
        return names[self.root] + CHORD_SUFFIXES[intervals]


def nearest_pitch(pitch_class: int, target: float) -> int:
    """Chooses the octave of `pitch_class` that lies closest to the pitch `target`."""
    return pitch_class + 12 * round((target - pitch_class) / 12)


def pitches_between(pitch_classes: tuple[int, ...], low: int, high: int) -> list[int]:
    """Lists, in rising order, all pitches from `low` to `high` that belong to `pitch_classes`."""
    return [pitch for pitch in range(low, high + 1) if pitch % 12 in pitch_classes]


def close_voicing(chord: Chord, centre: float, previous: list[int] | None = None) -> list[int]:
    """Chooses the inversion of a chord that moves least from the previous voicing, without drifting off `centre`."""
    pitch_classes = chord.pitch_classes if chord.size < 5 else chord.pitch_classes[1:]  # the bass has the root
    candidates = []
    for inversion in range(len(pitch_classes)):
        for octave in (-12, 0, 12):
            voicing = [nearest_pitch(pitch_classes[inversion], centre - 5) + octave]
            for k in range(1, len(pitch_classes)):
                pitch_class = pitch_classes[(inversion + k) % len(pitch_classes)]
                voicing.append(voicing[-1] + (pitch_class - voicing[-1]) % 12)
            candidates.append(sorted(voicing))

    def cost(voicing: list[int]) -> float:
        drift = abs(float(np.mean(voicing)) - centre)
        if previous is None:
            return drift
        return sum(min(abs(pitch - other) for other in previous) for pitch in voicing) + 0.6 * drift

    return min(candidates, key=cost)


def four_part_voicing(chord: Chord, previous: list[int] | None, rng: np.random.Generator) -> list[int]:
    """Sets a chord for bass, tenor, alto and soprano, moving each voice as little as possible.

    Returns:
        Four pitches from bass to soprano, each inside the range of its voice.
    """
    ranges = ((41, 57), (50, 65), (57, 72), (62, 79))
    bass_options = pitches_between((chord.root,), *ranges[0])
    start = previous or [48, 57, 64, 70]
    best, best_cost = None, float("inf")
    for bass in bass_options:
        for tenor in pitches_between(chord.pitch_classes, *ranges[1]):
            for alto in pitches_between(chord.pitch_classes, max(tenor, ranges[2][0]), min(tenor + 12, ranges[2][1])):
                for soprano in pitches_between(
                    chord.pitch_classes, max(alto + 1, ranges[3][0]), min(alto + 12, ranges[3][1])
                ):
                    voicing = [bass, tenor, alto, soprano]
                    missing = len(set(chord.pitch_classes[:3]) - {pitch % 12 for pitch in voicing})
                    motion = [b - a for a, b in zip(start, voicing, strict=True)]
                    cost = 8 * missing + sum(abs(step) for step in motion[1:]) + 0.4 * abs(motion[0])
                    cost += 4 * (all(step > 0 for step in motion) or all(step < 0 for step in motion))
                    cost += float(rng.random()) * 4 + (2 if motion[3] == 0 else 0)
                    if cost < best_cost:
                        best, best_cost = voicing, cost
    return best
