"""Composes a whole piece from one seed: style, key, tempo, mood, ensemble, chords and every part."""

import math
from dataclasses import dataclass

import numpy as np

from data_prep.composer import accompaniment, melody, rhythm_section
from data_prep.composer.harmony import Chord, Key
from data_prep.composer.instruments import Instrument, get_instrument
from data_prep.composer.moods import MOODS, Mood
from data_prep.composer.score import ChordSpan, Note, Score
from data_prep.composer.style import Ensemble, Style
from data_prep.composer.styles import STYLES


WRITERS = {
    "melody": melody.write_melody,
    "line": melody.write_line,
    "counter": melody.write_counter,
    "running": melody.write_running,
    "invention": melody.write_invention,
    "keyboard": melody.write_keyboard,
    "comping": accompaniment.write_comping,
    "skank": accompaniment.write_skank,
    "bubble": accompaniment.write_bubble,
    "offbeats": accompaniment.write_offbeats,
    "stabs": accompaniment.write_stabs,
    "montuno": accompaniment.write_montuno,
    "power": accompaniment.write_power,
    "pad": accompaniment.write_pad,
    "organ_pad": accompaniment.write_pad,
    "choir_pad": accompaniment.write_pad,
    "arpeggio": accompaniment.write_arpeggio,
    "sequence": accompaniment.write_sequence,
    "ostinato": accompaniment.write_ostinato,
    "picking": accompaniment.write_picking,
    "bossa_guitar": accompaniment.write_bossa_guitar,
    "chorale": accompaniment.write_chorale,
    "soprano": accompaniment.write_soprano,
    "alto": accompaniment.write_alto,
    "tenor": accompaniment.write_tenor,
    "ground": accompaniment.write_ground,
    "bass": rhythm_section.write_bass,
    "drone": rhythm_section.write_drone,
    "ground_line": rhythm_section.write_ground_line,
    "drums": rhythm_section.write_drums,
}
START_BARS = (0, 4, 8)
FREE_TEMPI_BPM = (48, 190)  # what a piece may be played at when its style does not say
HUMAN_TIMING_IN_S = 0.006


@dataclass(frozen=True)
class Part:
    """The notes of one player."""

    instrument: Instrument
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class Room:
    """The reverberation around the players.

    Args:
        decay_in_s: Time in which the sound dies away.
        level: Loudness of the reverberation beside the direct sound, as an amplitude factor.
        damping: How dull it sounds, from 0 to just below 1.
        seed: Seed of its random reflections.
    """

    decay_in_s: float
    level: float
    damping: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A composed piece and the clip that is cut from it.

    Args:
        style: The style.
        mood: The mood.
        key: The key, or None when only drums play.
        tempo_bpm: Beats per minute.
        ensemble_name: Collective name of the players, such as "string quartet", or None.
        parts: The parts, the most prominent first.
        bars: The chords of each bar.
        start_bar: Bar on which the clip begins.
        room: Where it is played.
    """

    style: Style
    mood: Mood
    key: Key | None
    tempo_bpm: int
    ensemble_name: str | None
    parts: tuple[Part, ...]
    bars: tuple[tuple[ChordSpan, ...], ...]
    start_bar: int
    room: Room

    @property
    def seconds_per_beat(self) -> float:
        return 60.0 / self.tempo_bpm

    @property
    def seconds_per_bar(self) -> float:
        return self.style.beats_per_bar * self.seconds_per_beat

    @property
    def start_in_s(self) -> float:
        return self.start_bar * self.seconds_per_bar

    @property
    def chords(self) -> list[tuple[float, str]]:
        """The chords from the clip's beginning on, as `(second, symbol)`, each where it begins; none without a key."""
        if self.key is None:
            return []
        chords: list[tuple[float, str]] = []
        for number, bar in enumerate(self.bars[self.start_bar :]):
            for span in bar:
                second = number * self.seconds_per_bar + span.step / self.style.steps_per_beat * self.seconds_per_beat
                if not chords or chords[-1][1] != span.chord.symbol:
                    chords.append((round(second, 4), span.chord.symbol))
        return chords

    @property
    def instruments(self) -> list[str]:
        """Tag names of the instruments, each once, the most prominent first."""
        return list(dict.fromkeys(part.instrument.name for part in self.parts))


def compose(generator: np.random.Generator, *, duration_in_s: float = 10.24, free_tempo_share: float = 0.0) -> Piece:
    """Composes one piece.

    Args:
        generator: Source of every choice; the same state gives the same piece.
        duration_in_s: Length of the clip that will be cut from the piece.
        free_tempo_share: Chance that the tempo is drawn from all there are, whatever style and mood call for.

    Returns:
        The piece, in which every part sounds inside the clip.
    """
    style = _choose(generator, tuple(STYLES.values()))
    mood = MOODS[_choose(generator, style.moods)]
    key = Key(int(generator.integers(12)), _choose(generator, mood.modes))
    slowest, fastest = (style.tempo[0] + share * (style.tempo[1] - style.tempo[0]) for share in mood.tempo)
    tempo_bpm = int(generator.integers(round(slowest), round(fastest) + 1))
    if free_tempo_share and generator.random() < free_tempo_share:
        tempo_bpm = round(math.exp(generator.uniform(*np.log(FREE_TEMPI_BPM))))
    line_ups = style.bands if not style.solos or generator.random() < style.band_share else style.solos
    ensemble = _choose(generator, line_ups)

    start_bar = int(_choose(generator, START_BARS))
    bar_in_s = style.beats_per_bar * 60.0 / tempo_bpm
    num_bars = start_bar + math.ceil(duration_in_s / bar_in_s) + 1
    bars = _chords(key, style, str(_choose(generator, style.progressions[key.mode])), num_bars)
    score = Score(key, style, mood, bars, generator)
    window = (start_bar * style.beats_per_bar, start_bar * style.beats_per_bar + duration_in_s * tempo_bpm / 60.0)
    parts = _write_parts(score, ensemble, tempo_bpm, window)
    is_unpitched = all(part.instrument.is_drum_kit for part in parts)
    return Piece(
        style=style,
        mood=mood,
        key=None if is_unpitched else key,
        tempo_bpm=tempo_bpm,
        ensemble_name=ensemble.name,
        parts=parts,
        bars=tuple(tuple(spans) for spans in bars),
        start_bar=start_bar,
        room=_draw_room(generator),
    )


def _draw_room(generator: np.random.Generator) -> Room:
    """Draws a room between a dry studio and a hall; reverberation stays a colour, never an effect."""
    return Room(
        decay_in_s=float(generator.uniform(0.4, 1.6)),
        level=float(generator.uniform(0.05, 0.28)),
        damping=float(generator.uniform(0.2, 0.7)),
        seed=int(generator.integers(2**31)),
    )


def _choose(generator: np.random.Generator, options):
    return options[int(generator.integers(len(options)))]


def _chords(key: Key, style: Style, progression: str, num_bars: int) -> list[list[ChordSpan]]:
    """Lays a progression out over the bars; several digits in a token share its bar."""
    tokens = progression.split()
    bars = []
    for bar in range(num_bars):
        token = tokens[bar % len(tokens)]
        edges = [round(k * style.beats_per_bar / len(token)) * style.steps_per_beat for k in range(len(token) + 1)]
        chords = [Chord(key, int(degree), style.chord_size) for degree in token]
        bars.append([ChordSpan(a, b - a, chord) for a, b, chord in zip(edges, edges[1:], chords, strict=False)])
    return bars


def _write_parts(score: Score, ensemble: Ensemble, tempo_bpm: int, window: tuple[float, float]) -> tuple[Part, ...]:
    """Writes every part that is present and sounds inside the clip."""
    parts = []
    taken = set()
    for role in ensemble.roles:
        is_present = score.happens(role.chance)
        options = [name for name in role.instruments if name not in taken] or list(role.instruments)
        instrument = get_instrument(score.choose(options))
        if not is_present:
            continue
        notes = WRITERS[role.writer](score, instrument)
        notes = _humanise(score, notes, tempo_bpm)
        if any(window[0] <= note.start < window[1] - 1 for note in notes):
            taken.add(instrument.name)
            parts.append(Part(instrument, tuple(sorted(notes, key=lambda note: (note.start, note.pitch)))))
    return tuple(parts)


def _humanise(score: Score, notes: list[Note], tempo_bpm: int) -> list[Note]:
    """Moves each onset by a few milliseconds, as players do; sequencers stay exact."""
    if score.style.is_sequenced:
        return notes
    spread = HUMAN_TIMING_IN_S * tempo_bpm / 60.0
    shifts = score.generator.normal(0.0, spread, len(notes))
    return [
        Note(max(0.0, note.start + float(shift)), note.duration, note.pitch, note.velocity)
        for note, shift in zip(notes, shifts, strict=True)
    ]
