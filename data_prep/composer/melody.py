"""Melodic parts: tunes built from repeated motifs, counter-melodies, running figures and two-handed keyboard music."""

from data_prep.composer.accompaniment import guide_tones, play_arpeggio, play_chords
from data_prep.composer.harmony import nearest_pitch, pitches_between
from data_prep.composer.instruments import Instrument
from data_prep.composer.score import Note, PatternNote, Score, parse_pattern


# Melody rhythms by bar length: sixteen sixteenths, three quarters in sixteenths, four triplets.
RHYTHMS_IN_FOUR = {
    "sparse": ("x-------x-------", "x-----------x---", "....x---x-------", "x-------x---x---", "x---x-----------"),
    "medium": (
        "x---x---x---x---",
        "x--x--x-x-------",
        "..x-x-x-x-----x-",
        "x-----x-x---x---",
        "x---x-x-x-----..",
        "x--x--x---x-x---",
    ),
    "busy": ("x-x-x-x-x---x-x-", "x-x-x---x-x-x---", "x--xx-x-x-x-x---", "..x-x-xxx-x-x---", "x-xxx-x-x-xxx-x-"),
}
RHYTHMS_IN_THREE = {
    "sparse": ("x-----------", "x-------x---", "x---x-------"),
    "medium": ("x---x---x---", "x-------x-x-", "x-----x-x---", "x---x-x-x---"),
    "busy": ("x-x-x-x-x-x-", "x---x-x-x-x-", "x--xx-x-x---", "x-x-x---x---"),
}
RHYTHMS_IN_TRIPLETS = {
    "sparse": ("x--------...", "x-----x-----", "...x-----..."),
    "medium": ("x-xx-x------", "..xx-xx-x...", "x--x-xx-----", "x-x---x-xx--"),
    "busy": ("x-xx-xx-xx-x", "xxxx-xx-x---", "x-xx-xxxxx--"),
}
CADENCES = {"four": "x---x---x-------", "three": "x-------....", "triplets": "x--x--x-----"}


def _rhythms(score: Score) -> tuple[dict[str, tuple[str, ...]], str]:
    if score.style.beats_per_bar == 3:
        return RHYTHMS_IN_THREE, CADENCES["three"]
    if score.style.steps_per_beat == 3:
        return RHYTHMS_IN_TRIPLETS, CADENCES["triplets"]
    return RHYTHMS_IN_FOUR, CADENCES["four"]


def _register(instrument: Instrument, share: float) -> tuple[int, int]:
    """The part of an instrument's range a tune moves in: about an octave and a half around `share` of the range."""
    centre = instrument.low + share * (instrument.high - instrument.low)
    return max(instrument.low, round(centre) - 9), min(instrument.high, round(centre) + 10)


def write_tune(score: Score, low: int, high: int, *, density: str, gate: float = 0.92, offset: int = 8) -> list[Note]:
    """Composes a tune in four-bar phrases a-b-a-cadence; a motif keeps its rhythm and contour when it returns.

    Args:
        score: The score.
        low: Lowest pitch.
        high: Highest pitch.
        density: Which set of rhythms to draw from.
        gate: Sounding share of the written lengths.
        offset: Added to the velocity.
    """
    rhythms, cadence = _rhythms(score)
    motifs = {}
    for name in "abc":
        rhythm = score.choose(rhythms[density])
        moves = [int(score.choose((-2, -1, -1, 1, 1, 2, 3, -3))) for _ in parse_pattern(rhythm)]
        motifs[name] = (parse_pattern(rhythm), moves)
    notes = []
    pitch = nearest_pitch(score.bars[0][0].chord.pitch_classes[int(score.choose((0, 1, 2)))], (low + high) / 2)
    for bar in range(score.num_bars):
        place = bar % 4
        rhythm, moves = motifs["abac"[place]] if (bar // 4) % 2 == 0 else motifs["bacb"[place]]
        if place == 3:
            rhythm, moves = parse_pattern(cadence), [-1, -1, 1]
        for written, move in zip(rhythm, moves, strict=False):
            chord = score.chord_at(bar, written.step)
            ladder = pitches_between(chord.scale, low, high)
            goal = _step_along(ladder, pitch, move)
            is_strong = (
                written.step % (2 * score.style.steps_per_beat) == 0
                or written.num_steps >= score.style.steps_per_beat * 2
            )
            if is_strong:
                goal = min(pitches_between(chord.pitch_classes[:3], low, high), key=lambda p: (abs(p - goal), p))
            pitch = goal
            symbol = "X" if written.step == 0 else "x"
            notes.append(
                score.note(bar, PatternNote(written.step, written.num_steps, symbol), pitch, gate=gate, offset=offset)
            )
    return notes


def _step_along(ladder: list[int], pitch: int, move: int) -> int:
    """Moves `move` scale steps along a ladder of pitches and turns back at its ends."""
    position = min(range(len(ladder)), key=lambda k: abs(ladder[k] - pitch)) + move
    if position < 0:
        position = -position
    if position >= len(ladder):
        position = 2 * (len(ladder) - 1) - position
    return ladder[max(0, min(position, len(ladder) - 1))]


def write_melody(score: Score, instrument: Instrument) -> list[Note]:
    """The tune of a band."""
    low, high = _register(instrument, 0.55)
    return write_tune(score, low, high, density=score.mood.density)


def write_line(score: Score, instrument: Instrument) -> list[Note]:
    """An unaccompanied tune, so never sparse."""
    density = "medium" if score.mood.density == "sparse" else score.mood.density
    low, high = _register(instrument, 0.5)
    return write_tune(score, low - 3 if low - 3 >= instrument.low else low, high, density=density, gate=0.97)


def write_counter(score: Score, instrument: Instrument) -> list[Note]:
    """A slow second tune below the first."""
    low, high = _register(instrument, 0.4)
    return write_tune(score, low, high, density="sparse", gate=0.98, offset=-6)


def write_running(score: Score, instrument: Instrument, share: float = 0.5) -> list[Note]:
    """A running baroque figure: steady eighths or sixteenths that walk the scale between chord tones."""
    low, high = _register(instrument, share)
    fast = score.mood.density == "busy" or score.happens(0.5)
    stride = 1 if fast else max(1, score.style.steps_per_beat // 2)
    figure = [int(score.choose((1, 1, -1, -1, 2, -2))) for _ in range(8)]
    pitch = nearest_pitch(score.bars[0][0].chord.root, (low + high) / 2)
    notes = []
    for bar in range(score.num_bars):
        for index, step in enumerate(range(0, score.style.steps_per_bar, stride)):
            chord = score.chord_at(bar, step)
            goal = _step_along(pitches_between(chord.scale, low, high), pitch, figure[index % 8])
            if step % score.style.steps_per_beat == 0:
                goal = min(pitches_between(chord.pitch_classes[:3], low, high), key=lambda p: abs(p - goal))
            pitch = goal
            symbol = "X" if step % score.style.steps_per_beat == 0 else "x"
            notes.append(score.note(bar, PatternNote(step, stride, symbol), pitch, gate=0.9, offset=2))
    return notes


def write_invention(score: Score, instrument: Instrument) -> list[Note]:
    """Two independent keyboard voices: a running upper one and a walking lower one."""
    upper = write_running(score, instrument, 0.62)
    low = max(instrument.low, 40)
    notes = list(upper)
    pitch = nearest_pitch(score.bars[0][0].chord.root, low + 8)
    stride = max(1, score.style.steps_per_beat // 2)
    for bar in range(score.num_bars):
        for step in range(0, score.style.steps_per_bar, stride):
            chord = score.chord_at(bar, step)
            if any(span.step == step for span in score.bars[bar]):
                pitch = nearest_pitch(chord.root, low + 8)
            else:
                tones = chord.pitch_classes if step % score.style.steps_per_beat == 0 else chord.scale
                options = [p for p in pitches_between(tones, low, low + 19) if 0 < abs(p - pitch) <= 5]
                pitch = score.choose(options)
            notes.append(score.note(bar, PatternNote(step, stride, "x"), pitch, gate=0.9, offset=-4))
    return notes


def write_keyboard(score: Score, instrument: Instrument) -> list[Note]:
    """Music for two hands: a tune on the right, broken chords, a stride or guide tones on the left."""
    low = max(instrument.low, 62 if instrument.low < 56 else instrument.low + 8)
    density = "medium" if score.mood.density == "sparse" and score.style.chord_size < 5 else score.mood.density
    right = write_tune(score, low, min(low + 20, instrument.high), density=density, gate=0.95)
    if instrument.low > 50:
        return right + play_arpeggio(
            score, instrument, score.choose(score.style.arpeggios), centre=instrument.low + 6, gate=1.5
        )
    if score.style.swing > 0.6 and score.style.chord_size >= 4:
        return right + _guide_tone_left_hand(score)
    if score.style.beats_per_bar == 3 or score.style.name == "march":
        return right + _stride_left_hand(score, instrument)
    left = play_arpeggio(score, instrument, score.choose(score.style.arpeggios), centre=53, gate=2.0)
    if score.happens(0.3):
        left = play_chords(score, instrument, score.choose(score.style.comping), centre=55, offset=-8)
    return right + left + _bass_notes(score, max(instrument.low, 36))


def _bass_notes(score: Score, low: int) -> list[Note]:
    """The root of each chord, low and held."""
    notes = []
    for bar, spans in enumerate(score.bars):
        for span in spans:
            pitch = nearest_pitch(span.chord.root, low + 6)
            notes.append(score.note(bar, PatternNote(span.step, span.num_steps, "x"), pitch, offset=-4))
    return notes


def _guide_tone_left_hand(score: Score) -> list[Note]:
    pattern = parse_pattern(score.choose(score.style.comping))
    notes = []
    for bar in range(score.num_bars):
        for written in pattern:
            for pitch in guide_tones(score.chord_at(bar, written.step), 55):
                notes.append(score.note(bar, written, pitch, offset=-8))
    return notes + _bass_notes(score, 38)


def _stride_left_hand(score: Score, instrument: Instrument) -> list[Note]:
    """Bass note on the first beat, chords on the others."""
    steps = score.style.steps_per_beat
    weak_beats = "." * steps + ("x" + "-" * (steps - 2) + ".") * (score.style.beats_per_bar - 1)
    chords = play_chords(score, instrument, weak_beats, centre=56, offset=-14)
    bass = []
    for bar in range(score.num_bars):
        pitch = nearest_pitch(score.chord_at(bar, 0).root, max(instrument.low, 38) + 4)
        bass.append(score.note(bar, PatternNote(0, steps * 2, "x"), pitch, offset=-6))
    return bass + chords
