"""Drums and bass."""

from data_prep.composer.harmony import nearest_pitch, pitches_between
from data_prep.composer.instruments import Instrument
from data_prep.composer.score import Note, PatternNote, Score, parse_pattern


# General MIDI percussion keys.
DRUM_KEYS = {
    "kick": 36,
    "snare": 38,
    "rim": 37,
    "clap": 39,
    "hat": 42,
    "open_hat": 46,
    "ride": 51,
    "crash": 49,
    "cymbal": 49,
    "cowbell": 56,
    "conga": 63,
    "clave": 75,
    "shaker": 82,
    "tom": 45,
}
# How loud each drum is beside the mood's velocity.
DRUM_OFFSETS = {
    "hat": -22,
    "open_hat": -20,
    "ride": -18,
    "shaker": -26,
    "crash": -6,
    "cymbal": -8,
    "clave": -8,
    "cowbell": -18,
    "rim": -4,
}


def write_drums(score: Score, instrument: Instrument) -> list[Note]:
    """Repeats one drum pattern, with a fill at the end of every fourth bar for a player and a crash after it."""
    if "timpani" in score.style.drums[0]:
        return write_timpani(score, instrument)
    pattern = score.choose(score.style.drums)
    has_fills = not score.style.is_sequenced and "snare" in pattern
    half = score.style.steps_per_bar * 3 // 4
    notes = []
    for bar in range(score.num_bars):
        is_fill = has_fills and bar % 4 == 3
        for drum, rhythm in pattern.items():
            for written in parse_pattern(rhythm):
                if is_fill and drum not in ("kick", "hat") and written.step >= half:
                    continue
                notes.append(_strike(score, bar, written, drum))
        if is_fill:
            notes += _fill(score, bar, half)
        if has_fills and bar % 8 == 0 and bar and score.mood.velocity > 80:
            notes.append(_strike(score, bar, PatternNote(0, 1, "x"), "crash"))
    return notes


def _strike(score: Score, bar: int, written: PatternNote, drum: str) -> Note:
    note = score.note(bar, written, DRUM_KEYS[drum], offset=DRUM_OFFSETS.get(drum, 0))
    return Note(note.start, 0.2, note.pitch, note.velocity)


def _fill(score: Score, bar: int, first_step: int) -> list[Note]:
    """A run over snare and toms that fills the end of a bar."""
    drums = ("snare", "snare", "tom", "tom")
    steps = [step for step in range(first_step, score.style.steps_per_bar) if score.happens(0.75)]
    keys = [DRUM_KEYS[drums[(step - first_step) % len(drums)]] for step in steps]
    return [
        Note(score.beat(bar, step), 0.2, key, score.velocity("x", -4)) for step, key in zip(steps, keys, strict=True)
    ]


def write_timpani(score: Score, instrument: Instrument) -> list[Note]:
    """Timpani strokes on the root of each chord."""
    pattern = parse_pattern(score.choose(score.style.drums)["timpani"])
    notes = []
    for bar in range(score.num_bars):
        for written in pattern:
            root = nearest_pitch(score.chord_at(bar, written.step).root, (instrument.low + instrument.high) / 2)
            notes.append(score.note(bar, written, root, gate=2.0))
    return notes


def write_bass(score: Score, instrument: Instrument) -> list[Note]:
    """Plays one of the style's bass patterns on every chord."""
    pattern = score.choose(score.style.bass)
    if pattern == "walk":
        return write_walking_bass(score, instrument)
    centre = instrument.low + 10
    notes = []
    for bar in range(score.num_bars):
        for written in parse_pattern(pattern):
            chord = score.chord_at(bar, written.step)
            root = nearest_pitch(chord.root, centre)
            pitch = _bass_pitch(score, bar, written, root, centre)
            while pitch > instrument.high:
                pitch -= 12
            symbol = "X" if written.symbol == "R" and written.step == 0 else "o" if written.symbol == "r" else "x"
            notes.append(score.note(bar, PatternNote(written.step, written.num_steps, symbol), pitch, gate=0.9))
    return notes


def _bass_pitch(score: Score, bar: int, written: PatternNote, root: int, centre: int) -> int:
    chord = score.chord_at(bar, written.step)
    if written.symbol == "5":
        return nearest_pitch(chord.pitch_classes[2], root + 6)
    if written.symbol == "3":
        return nearest_pitch(chord.pitch_classes[1], root + 4)
    if written.symbol == "8":
        return root + 12
    if written.symbol == "<":
        next_root = nearest_pitch(score.chord_at(bar + 1, 0).root, centre)
        return max(pitches_between(chord.scale, next_root - 4, next_root - 1))
    return root


def write_walking_bass(score: Score, instrument: Instrument) -> list[Note]:
    """A walking bass: roots on chord changes, scale steps that lead into the next root elsewhere."""
    centre = instrument.low + 13
    steps_per_beat = score.style.steps_per_beat
    notes = []
    pitch = nearest_pitch(score.bars[0][0].chord.root, centre)
    for bar in range(score.num_bars):
        for beat in range(score.style.beats_per_bar):
            step = beat * steps_per_beat
            chord = score.chord_at(bar, step)
            if any(span.step == step for span in score.bars[bar]):
                pitch = nearest_pitch(chord.root, centre)
            else:
                tones = chord.pitch_classes if beat % 2 == 0 else chord.scale
                options = [
                    p for p in pitches_between(tones, instrument.low, instrument.high) if 0 < abs(p - pitch) <= 7
                ]
                next_beat = (bar, step + steps_per_beat) if beat + 1 < score.style.beats_per_bar else (bar + 1, 0)
                goal = nearest_pitch(score.chord_at(*next_beat).root, centre)
                pitch = min(
                    options, key=lambda p: abs(p - goal) + 0.5 * abs(p - pitch) + 3 * float(score.generator.random())
                )
            notes.append(score.note(bar, PatternNote(step, steps_per_beat, "x"), pitch, gate=0.92))
    return notes


def write_drone(score: Score, instrument: Instrument) -> list[Note]:
    """Holds the root of each chord, low and soft."""
    centre = instrument.low + 8
    notes = []
    for bar, spans in enumerate(score.bars):
        for span in spans:
            written = PatternNote(span.step, span.num_steps, "o")
            notes.append(score.note(bar, written, nearest_pitch(span.chord.root, centre), gate=1.0))
    return notes


def write_ground_line(score: Score, instrument: Instrument) -> list[Note]:
    """A continuo bass in quarter and eighth notes that walks between the roots."""
    centre = instrument.low + 12
    half_beat = max(1, score.style.steps_per_beat // 2)
    pitch = nearest_pitch(score.bars[0][0].chord.root, centre)
    notes = []
    for bar in range(score.num_bars):
        for step in range(0, score.style.steps_per_bar, half_beat):
            chord = score.chord_at(bar, step)
            is_on_beat = step % score.style.steps_per_beat == 0
            if any(span.step == step for span in score.bars[bar]):
                pitch = nearest_pitch(chord.root, centre)
            elif is_on_beat or score.happens(0.35):
                tones = chord.pitch_classes if is_on_beat else chord.scale
                options = [
                    p for p in pitches_between(tones, instrument.low, instrument.high) if 0 < abs(p - pitch) <= 5
                ]
                pitch = score.choose(options)
            else:
                continue
            notes.append(score.note(bar, PatternNote(step, half_beat, "x"), pitch, gate=0.9))
    return notes
