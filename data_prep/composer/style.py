"""The musical styles: metre, tempo range, chord progressions, rhythm patterns and ensembles, as plain data.

A rhythm pattern is a string with one character per step of the bar (`steps_per_beat` steps to a beat):
`X` accented note, `x` note, `o` soft note, `-` the previous note is held, `.` silence.
Bass patterns name chord tones instead: `R` root, `r` soft root, `5` fifth, `8` octave, `3` third, `<` scale step below
the next root; the single word "walk" is a walking bass. Arpeggio patterns count chord tones upwards from 0.
A progression has one token per bar, each digit a scale degree; several digits share the bar evenly.
"""

from dataclasses import dataclass


POP_MAJOR = ("1 5 6 4", "1 6 4 5", "1 4 1 5", "1 4 6 5", "1 3 4 5", "1 4 5 1", "1 2 5 1")
POP_MINOR = ("1 6 4 5", "1 4 5 1", "1 7 6 5", "1 4 1 5", "1 6 7 1", "1 6 3 5", "1 1 4 5")
JAZZ_MAJOR = ("1 25 1 25", "1 6 2 5", "1 4 25 1", "1 2 5 1", "1 6 25 1", "1 25 1 45")
JAZZ_MINOR = ("1 25 1 25", "1 4 25 1", "1 6 2 5", "1 4 5 1", "1 25 1 5")
CLASSICAL_MAJOR = ("1 4 5 1", "1 5 1 45", "1 64 25 1", "16 25 14 51", "15 64 14 51", "1 2 5 1", "1 5 6 25")
CLASSICAL_MINOR = ("1 4 5 1", "1 5 1 45", "1 64 25 1", "16 25 14 51", "15 64 14 51", "1 4 7 3", "1 5 6 45")
STATIC_MAJOR = ("1 1 4 1", "1 4 1 4", "1 1 6 4", "1 4 6 5", "1 1 4 5")
STATIC_MINOR = ("1 1 1 1", "1 1 6 5", "1 1 4 5", "1 6 1 5", "1 1 4 1")


@dataclass(frozen=True)
class Role:
    """One part of an ensemble.

    Args:
        writer: Name of the part in `data_prep.composer.composition` that composes it.
        instruments: Tag names of the instruments that may play it.
        chance: Probability that the part is present.
    """

    writer: str
    instruments: tuple[str, ...]
    chance: float = 1.0


@dataclass(frozen=True)
class Ensemble:
    """A line-up: its parts from the most to the least prominent, and a collective name if it has one."""

    roles: tuple[Role, ...]
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Style:
    """Everything the composer knows of one style.

    Args:
        names: Words captions may use; the first one is the tag.
        tempo: Slowest and fastest tempo in beats per minute.
        progressions: Chord progressions by mode.
        moods: Tag names of the moods that fit.
        bands: Full line-ups.
        solos: Single instruments, homogeneous ensembles and duos.
        drums: Drum patterns, each a mapping from drum to rhythm pattern.
        bass: Bass patterns.
        comping: Rhythm patterns of the chords.
        arpeggios: Arpeggio patterns.
        beats_per_bar: Beats in a bar.
        steps_per_beat: Pattern steps in a beat.
        swing: Position of the off-beat inside its beat: 0.5 is straight, 0.66 a triplet.
        swing_unit: Length in beats of the pulse whose second half is delayed.
        chord_size: Tones per chord.
        is_sequenced: Whether a machine plays: no timing humanisation.
        band_share: Share of the pieces that are played by a full band.
    """

    names: tuple[str, ...]
    tempo: tuple[int, int]
    progressions: dict[str, tuple[str, ...]]
    moods: tuple[str, ...]
    bands: tuple[Ensemble, ...]
    solos: tuple[Ensemble, ...] = ()
    drums: tuple[dict[str, str], ...] = ()
    bass: tuple[str, ...] = ("R---------------",)
    comping: tuple[str, ...] = ("x---------------",)
    arpeggios: tuple[str, ...] = ("0.1.2.1.3.1.2.1.",)
    beats_per_bar: int = 4
    steps_per_beat: int = 4
    swing: float = 0.5
    swing_unit: float = 1.0
    chord_size: int = 3
    is_sequenced: bool = False
    band_share: float = 0.6

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def steps_per_bar(self) -> int:
        return self.beats_per_bar * self.steps_per_beat


def ensemble(*roles: str, name: str | None = None) -> Ensemble:
    """Reads an ensemble from lines such as `"melody 0.7: flute | violin"`."""
    parsed = []
    for role in roles:
        head, instruments = role.split(":")
        writer, _, chance = head.partition(" ")
        options = tuple(instrument.strip() for instrument in instruments.split("|"))
        parsed.append(Role(writer, options, float(chance or 1.0)))
    return Ensemble(tuple(parsed), name)


def progressions(major: tuple[str, ...], minor: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"major": major, "minor": minor}


STRING_QUARTET = ensemble("soprano: violin", "alto: violin", "tenor: viola", "ground: cello", name="string quartet")
BRASS_QUARTET = ensemble(
    "soprano: trumpet", "alto: french horn", "tenor: trombone", "ground: tuba", name="brass quartet"
)
WOODWIND_QUARTET = ensemble(
    "soprano: flute", "alto: oboe", "tenor: clarinet", "ground: bassoon", name="woodwind quartet"
)
SOLO_PIANO = ensemble("keyboard: piano")
SOLO_ELECTRIC_PIANO = ensemble("keyboard: electric piano")
SOLO_NYLON = ensemble("picking: nylon guitar")
SOLO_STEEL = ensemble("picking: acoustic guitar")
SOLO_HARP = ensemble("picking: harp")
SOLO_STRINGS = ensemble("line: violin | cello")
SOLO_WINDS = ensemble("line: flute | flute | clarinet | oboe | pan flute")
SOLO_BRASS = ensemble("line: trumpet | trombone | french horn")
SOLO_SAX = ensemble("line: alto saxophone | tenor saxophone")
SOLO_MALLETS = ensemble("keyboard: vibraphone | marimba | kalimba | music box")
SOLO_ORGAN = ensemble("keyboard: organ")
SOLO_CHOIR = ensemble("chorale: choir")
FLUTE_AND_HARP = ensemble("melody: flute", "picking: harp")
STRINGS_AND_PIANO = ensemble("melody: violin | cello", "arpeggio: piano")
WINDS_AND_GUITAR = ensemble("melody: flute | clarinet | pan flute", "picking: nylon guitar")
