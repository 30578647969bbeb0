"""Chordal parts: comping, pads, arpeggios, strumming and four-part harmony."""

from data_prep.composer.harmony import Chord, close_voicing, nearest_pitch
from data_prep.composer.instruments import Instrument
from data_prep.composer.score import Note, PatternNote, Score, parse_pattern


STRUM_IN_BEATS = 0.025  # delay from one string to the next
STRUMMED = ("guitar", "harp", "banjo")


def _centre(instrument: Instrument, share: float = 0.45) -> float:
    return min(instrument.low + share * (instrument.high - instrument.low), 66)


def _spread(instrument: Instrument) -> float:
    return STRUM_IN_BEATS if instrument.name.endswith(STRUMMED) else 0.0


def play_chords(
    score: Score, instrument: Instrument, pattern: str, *, centre: float, gate: float = 0.95, offset: int = 0
) -> list[Note]:
    """Plays voice-led chords on a rhythm pattern; plucked strings are strummed."""
    spread = _spread(instrument)
    notes = []
    voicing, last_chord = None, None
    for bar in range(score.num_bars):
        for written in parse_pattern(pattern):
            chord = score.chord_at(bar, written.step)
            if chord != last_chord:
                voicing, last_chord = close_voicing(chord, centre, voicing), chord
            for k, pitch in enumerate(voicing):
                note = score.note(bar, written, pitch, gate=gate, offset=offset)
                notes.append(Note(note.start + k * spread, note.duration, note.pitch, note.velocity))
    return notes


def write_comping(score: Score, instrument: Instrument) -> list[Note]:
    """Chords in one of the style's comping rhythms."""
    return play_chords(score, instrument, score.choose(score.style.comping), centre=_centre(instrument), offset=-8)


def write_skank(score: Score, instrument: Instrument) -> list[Note]:
    """Short chords on the off-beats, reggae fashion."""
    pattern = score.choose(("..x...x...x...x.", "..X.o.X...X.o.X."))
    return play_chords(score, instrument, pattern, centre=_centre(instrument, 0.55), gate=0.6)


def write_bubble(score: Score, instrument: Instrument) -> list[Note]:
    """The organ shuffle that runs under a reggae skank."""
    return play_chords(score, instrument, ".ox..ox..ox..ox.", centre=60, gate=0.7, offset=-10)


def write_offbeats(score: Score, instrument: Instrument) -> list[Note]:
    """Short chords after each beat, as in a march."""
    return play_chords(score, instrument, "..x...x...x...x.", centre=_centre(instrument), gate=0.7, offset=-10)


def write_stabs(score: Score, instrument: Instrument) -> list[Note]:
    """Short accented chords, few and syncopated."""
    pattern = score.choose(("x..X............", "......X..X......", "X.........X..X..", "..........X.X..."))
    return play_chords(score, instrument, pattern, centre=_centre(instrument, 0.5), gate=0.9, offset=6)


def write_montuno(score: Score, instrument: Instrument) -> list[Note]:
    """A syncopated piano figure in octaves and chords."""
    pattern = score.choose(("x.xx.xx.x.xx.xx.", "x.x.xx.x.x.xx.x."))
    notes = play_chords(score, instrument, pattern, centre=66, gate=0.8)
    doubled = [Note(note.start, note.duration, note.pitch + 12, note.velocity - 6) for note in notes[::3]]
    return notes + doubled


def write_power(score: Score, instrument: Instrument) -> list[Note]:
    """Power chords (root, fifth, octave) in a riff rhythm."""
    pattern = score.choose(score.style.comping)
    notes = []
    for bar in range(score.num_bars):
        for written in parse_pattern(pattern):
            chord = score.chord_at(bar, written.step)
            root = nearest_pitch(chord.root, instrument.low + 5)
            fifth = nearest_pitch(chord.pitch_classes[2], root + 7)
            gate = 0.98 if written.symbol == "X" else 0.7
            notes += [score.note(bar, written, pitch, gate=gate, offset=-6) for pitch in (root, fifth, root + 12)]
    return notes


def write_pad(score: Score, instrument: Instrument) -> list[Note]:
    """Held chords, re-struck only when the harmony changes."""
    notes = []
    voicing, last_chord = None, None
    for bar, spans in enumerate(score.bars):
        for span in spans:
            if span.chord != last_chord:
                voicing, last_chord = close_voicing(span.chord, _centre(instrument, 0.5), voicing), span.chord
            written = PatternNote(span.step, span.num_steps, "x")
            notes += [score.note(bar, written, pitch, gate=1.02, offset=-10) for pitch in voicing]
    return notes


def _tone(voicing: list[int], index: int) -> int:
    """The chord tone `index` steps above the lowest; indices beyond the voicing go on an octave higher."""
    octave, position = divmod(index, len(voicing))
    return voicing[position] + 12 * octave


def play_arpeggio(score: Score, instrument: Instrument, pattern: str, *, centre: float, gate: float) -> list[Note]:
    """Breaks each chord up in the order an arpeggio pattern gives."""
    notes = []
    voicing, last_chord = None, None
    for bar in range(score.num_bars):
        for written in parse_pattern(pattern):
            chord = score.chord_at(bar, written.step)
            if chord != last_chord:
                voicing, last_chord = close_voicing(chord, centre, voicing), chord
            symbol = "X" if written.step == 0 else "x"
            played = PatternNote(written.step, written.num_steps, symbol)
            notes.append(score.note(bar, played, _tone(voicing, int(written.symbol)), gate=gate, offset=-6))
    return [note for note in notes if note.pitch <= instrument.high + 4]


def write_arpeggio(score: Score, instrument: Instrument) -> list[Note]:
    """Broken chords that ring on when the instrument can."""
    gate = 3.0 if instrument.is_plucked else 0.95
    return play_arpeggio(score, instrument, score.choose(score.style.arpeggios), centre=_centre(instrument), gate=gate)


def write_sequence(score: Score, instrument: Instrument) -> list[Note]:
    """A fast, short, machine-like arpeggio."""
    return play_arpeggio(score, instrument, score.choose(score.style.arpeggios), centre=64, gate=0.7)


def write_ostinato(score: Score, instrument: Instrument) -> list[Note]:
    """A repeated short figure of bowed or plucked strings."""
    return play_arpeggio(score, instrument, score.choose(score.style.arpeggios), centre=60, gate=0.6)


def write_picking(score: Score, instrument: Instrument) -> list[Note]:
    """Finger-picking: the root in the bass on strong beats, broken chords above it."""
    upper = play_arpeggio(score, instrument, score.choose(score.style.arpeggios), centre=instrument.low + 20, gate=3.0)
    bass = []
    for bar, spans in enumerate(score.bars):
        for span in spans:
            root = nearest_pitch(span.chord.root, instrument.low + 6)
            root += 12 * (root < instrument.low)
            bass.append(score.note(bar, PatternNote(span.step, span.num_steps, "X"), root, gate=1.0))
    return bass + upper


def write_bossa_guitar(score: Score, instrument: Instrument) -> list[Note]:
    """Thumb on the beats, syncopated chords in the fingers."""
    chords = play_chords(score, instrument, score.choose(score.style.comping), centre=60, gate=0.9, offset=-4)
    bass = []
    for bar in range(score.num_bars):
        for step in (0, 8):
            chord = score.chord_at(bar, step)
            pitch_class = chord.root if step == 0 else chord.pitch_classes[2]
            pitch = nearest_pitch(pitch_class, instrument.low + 6)
            pitch += 12 * (pitch < instrument.low)
            bass.append(score.note(bar, PatternNote(step, 7, "x"), pitch))
    return bass + chords


def _voice_notes(score: Score, voice: int, shift: int = 0) -> list[Note]:
    """One voice of the four-part harmony, in half bars at most, sometimes moving by a passing note."""
    notes = []
    steps_per_beat = score.style.steps_per_beat
    for bar, spans in enumerate(score.bars):
        for span, voicing in zip(spans, score.voices()[bar], strict=True):
            longest = 2 * steps_per_beat
            for step in range(span.step, span.step + span.num_steps, longest):
                length = min(longest, span.step + span.num_steps - step)
                notes.append(score.note(bar, PatternNote(step, length, "x"), voicing[voice] + shift, gate=0.98))
    return _with_passing_notes(score, notes) if voice in (1, 3) else notes


def _with_passing_notes(score: Score, notes: list[Note]) -> list[Note]:
    """Fills leaps of a third with the scale tone between them."""
    moved = []
    for note, following in zip(notes, [*notes[1:], None], strict=True):
        leap = 0 if following is None else following.pitch - note.pitch
        between = [
            pitch for pitch in range(min(note.pitch, note.pitch + leap) + 1, max(note.pitch, note.pitch + leap))
        ]
        bar = int(note.start // score.style.beats_per_bar)
        scale = score.chord_at(bar, 0).scale
        passing = [pitch for pitch in between if pitch % 12 in scale]
        if abs(leap) in (3, 4) and len(passing) == 1 and note.duration >= 0.9 and score.happens(0.7):
            half = note.duration / 2
            moved.append(Note(note.start, half, note.pitch, note.velocity))
            moved.append(Note(note.start + half, half, passing[0], note.velocity - 8))
        else:
            moved.append(note)
    return moved


def write_chorale(score: Score, instrument: Instrument) -> list[Note]:
    """All four voices on one instrument."""
    return [note for voice in range(4) for note in _voice_notes(score, voice)]


def write_soprano(score: Score, instrument: Instrument) -> list[Note]:
    """The highest of the four voices."""
    return _voice_notes(score, 3, 12 if instrument.low > 60 else 0)


def write_alto(score: Score, instrument: Instrument) -> list[Note]:
    """The second voice from above."""
    return _voice_notes(score, 2)


def write_tenor(score: Score, instrument: Instrument) -> list[Note]:
    """The third voice from above."""
    return _voice_notes(score, 1)


def write_ground(score: Score, instrument: Instrument) -> list[Note]:
    """The bass of the four voices."""
    return _voice_notes(score, 0, -12 if instrument.high < 57 else 0)


def guide_tones(chord: Chord, centre: float) -> list[int]:
    """Third and seventh (or fifth) of a chord, the left hand of a jazz pianist."""
    return [nearest_pitch(chord.pitch_classes[1], centre), nearest_pitch(chord.pitch_classes[-1], centre)]
