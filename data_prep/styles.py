"""The musical styles: metre, tempo range, chord progressions, rhythm patterns and ensembles, as plain data.

A rhythm pattern is a string with one character per step of the bar (`steps_per_beat` steps to a beat):
`X` accented note, `x` note, `o` soft note, `-` the previous note is held, `.` silence.
Bass patterns name chord tones instead: `R` root, `r` soft root, `5` fifth, `8` octave, `3` third, `<` scale step below
the next root; the single word "walk" is a walking bass. Arpeggio patterns count chord tones upwards from 0.
A progression has one token per bar, each digit a scale degree; several digits share the bar evenly.
"""

from dataclasses import dataclass, field


POP_MAJOR = ("1 5 6 4", "1 6 4 5", "1 4 1 5", "1 4 6 5", "1 3 4 5", "1 4 5 1", "1 2 5 1")
POP_MINOR = ("1 6 4 5", "1 4 5 1", "1 7 6 5", "1 4 1 5", "1 6 7 1", "1 6 3 5", "1 1 4 5")
JAZZ_MAJOR = ("2 5 1 6", "1 6 2 5", "1 25 1 25", "3 6 2 5", "1 4 25 1", "1 2 5 1")
JAZZ_MINOR = ("1 25 1 25", "1 4 2 5", "1 6 2 5", "2 5 1 1", "4 7 25 1")
CLASSICAL_MAJOR = ("1 4 5 1", "1 5 1 45", "1 64 25 1", "16 25 14 51", "15 64 14 51", "1 2 5 1", "1 5 6 25")
CLASSICAL_MINOR = ("1 4 5 1", "1 5 1 45", "1 64 25 1", "16 25 14 51", "15 64 14 51", "1 4 7 3", "1 5 6 45")
STATIC_MAJOR = ("1 1 4 1", "1 4 1 4", "1 1 6 4", "1 4 6 5", "1 1 4 5")
STATIC_MINOR = ("1 1 1 1", "1 1 6 5", "1 1 4 5", "1 6 1 5", "1 1 4 1")


@dataclass(frozen=True)
class Role:
    """One part of an ensemble.

    Args:
        writer: Name of the part in `data_prep.arrangement` that composes it.
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
        solos: Line-ups of a single instrument or of one homogeneous ensemble, and duos.
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
    band_share: float = field(default=0.6)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def steps_per_bar(self) -> int:
        return self.beats_per_bar * self.steps_per_beat


def _band(*roles: str, name: str | None = None) -> Ensemble:
    """Reads an ensemble from lines such as `"melody 0.7: flute | violin"`."""
    parsed = []
    for role in roles:
        head, instruments = role.split(":")
        writer, _, chance = head.partition(" ")
        options = tuple(instrument.strip() for instrument in instruments.split("|"))
        parsed.append(Role(writer, options, float(chance or 1.0)))
    return Ensemble(tuple(parsed), name)


def _progressions(major: tuple[str, ...], minor: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"major": major, "minor": minor}


STRING_QUARTET = _band("soprano: violin", "alto: violin", "tenor: viola", "ground: cello", name="string quartet")
BRASS_QUARTET = _band("soprano: trumpet", "alto: french horn", "tenor: trombone", "ground: tuba", name="brass quartet")
WOODWIND_QUARTET = _band("soprano: flute", "alto: oboe", "tenor: clarinet", "ground: bassoon", name="woodwind quartet")
SOLO_PIANO = _band("keyboard: piano")
SOLO_ELECTRIC_PIANO = _band("keyboard: electric piano")
SOLO_NYLON = _band("picking: nylon guitar")
SOLO_STEEL = _band("picking: acoustic guitar")
SOLO_HARP = _band("picking: harp")
SOLO_STRINGS = _band("line: violin | cello")
SOLO_WINDS = _band("line: flute | clarinet | oboe")
SOLO_SAX = _band("line: alto saxophone | tenor saxophone")
SOLO_MALLETS = _band("keyboard: vibraphone | marimba")
SOLO_CHOIR = _band("chorale: choir")
FLUTE_AND_HARP = _band("melody: flute", "picking: harp")
STRINGS_AND_PIANO = _band("melody: violin | cello", "arpeggio: piano")
WINDS_AND_GUITAR = _band("melody: flute | clarinet | pan flute", "picking: nylon guitar")

STYLES = {
    style.name: style
    for style in (
        Style(
            names=("pop", "pop song", "pop tune"),
            tempo=(84, 132),
            progressions=_progressions(POP_MAJOR, POP_MINOR),
            moods=("happy", "uplifting", "romantic", "melancholic", "energetic", "relaxed"),
            bands=(
                _band(
                    "melody 0.8: synth lead | flute | alto saxophone | piano | violin",
                    "comping: piano | acoustic guitar | electric piano | clean electric guitar",
                    "pad 0.5: strings | synth pad",
                    "bass: electric bass",
                    "drums: drums",
                ),
            ),
            solos=(SOLO_PIANO, SOLO_STEEL, SOLO_ELECTRIC_PIANO, _band("melody: flute | violin", "comping: piano"), _band("drums: drums")),
            drums=(
                {"kick": "X.......X.X.....", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
                {"kick": "X.....X.X.......", "snare": "....X.......X...", "hat": "xoxoxoxoxoxoxoxo"},
                {"kick": "X..X..X...X.....", "snare": "....X.......X..o", "hat": "x.x.x.x.x.x.x.x.", "open_hat": "..............x."},
            ),
            bass=("R-R-R-R-R-R-R-R-", "R-----R-R-----<-", "R---R---5---R---", "R--R--R-R--R--<-"),
            comping=("x-------x-------", "X---x---X---x---", "X-----x-..x-x---", "X-x-..x-X-x-..x-"),
            arpeggios=("0.1.2.3.2.1.2.1.", "0.2.1.2.3.2.1.2."),
        ),
        Style(
            names=("rock", "rock song", "guitar rock"),
            tempo=(100, 160),
            progressions=_progressions(("1 4 5 4", "1 5 4 1", "1 4 1 5", "1 6 4 5"), ("1 7 6 5", "1 6 7 1", "1 4 5 1", "1 6 4 5")),
            moods=("energetic", "dramatic", "dark", "happy", "uplifting"),
            bands=(
                _band("melody 0.5: distorted guitar | organ", "power: distorted guitar", "bass: electric bass", "drums: rock drums"),
                _band("melody 0.7: distorted guitar", "comping: clean electric guitar", "organ_pad 0.4: organ", "bass: electric bass", "drums: rock drums"),
            ),
            solos=(_band("power: distorted guitar"), _band("picking: clean electric guitar"), _band("power: distorted guitar", "drums: rock drums"), _band("drums: rock drums")),
            drums=(
                {"kick": "X.......X.X.....", "snare": "....X.......X...", "hat": "X.x.X.x.X.x.X.x."},
                {"kick": "X.X.....X.X...x.", "snare": "....X.......X...", "crash": "X...............", "ride": "x...x...x...x..."},
                {"kick": "X.....X.X.....X.", "snare": "....X.......X...", "open_hat": "X...x...X...x..."},
            ),
            bass=("R-R-R-R-R-R-R-R-", "R-R-R-R-R-R-5-<-", "R---R-R-R---R-R-"),
            comping=("X-x-X-x-X-x-X-x-", "X-----x-X-------", "X---x-x-..x-x-x-"),
        ),
        Style(
            names=("heavy metal", "metal"),
            tempo=(110, 180),
            progressions=_progressions(("1 4 5 1", "1 6 4 5"), ("1 1 6 7", "1 6 7 1", "1 7 6 5", "1 1 4 5")),
            moods=("dark", "energetic", "dramatic"),
            bands=(_band("melody 0.4: distorted guitar", "power: distorted guitar", "choir_pad 0.15: choir", "bass: electric bass", "drums: rock drums"),),
            solos=(_band("power: distorted guitar"), _band("power: distorted guitar", "drums: rock drums")),
            drums=(
                {"kick": "X.xxX.xxX.xxX.xx", "snare": "....X.......X...", "crash": "X.......x......."},
                {"kick": "XxxxXxxxXxxxXxxx", "snare": "....X.......X...", "ride": "x.x.x.x.x.x.x.x."},
            ),
            bass=("R-RRR-RRR-RRR-RR", "RRRRRRRRRRRRRRRR"),
            comping=("X-xxX-xxX-xxX-xx", "xxxXxxxXxxxXxxXx", "X---X-xxX---X-xx"),
            band_share=0.75,
        ),
        Style(
            names=("jazz swing", "swing jazz", "jazz", "swing tune"),
            tempo=(92, 180),
            progressions=_progressions(JAZZ_MAJOR, JAZZ_MINOR),
            moods=("relaxed", "happy", "playful", "groovy", "romantic", "energetic"),
            bands=(
                _band("melody 0.85: tenor saxophone | alto saxophone | trumpet | clarinet | jazz guitar | vibraphone", "comping: piano | jazz guitar", "bass: upright bass", "drums: jazz drums | brushed drums"),
                _band("keyboard: piano", "bass: upright bass", "drums: jazz drums | brushed drums", name="piano trio"),
                _band("melody: brass section", "comping: piano", "bass: upright bass", "drums: jazz drums", name="big band"),
            ),
            solos=(SOLO_PIANO, SOLO_SAX, _band("comping: jazz guitar"), SOLO_MALLETS, _band("melody: tenor saxophone | clarinet", "comping: piano"), _band("melody: jazz guitar", "bass: upright bass")),
            drums=(
                {"ride": "X...x.x.X...x.x.", "hat": "....x.......x...", "kick": "o.......o......."},
                {"ride": "X...x.x.x.x.x.x.", "hat": "....x.......x...", "snare": "......o.......o.", "kick": "o...o...o...o..."},
            ),
            bass=("walk",),
            comping=("x-....x-........", "......x-....x---", "x-....x-....x-..", "....x-....x-...."),
            swing=0.64,
            chord_size=4,
        ),
        Style(
            names=("bossa nova", "bossa", "Brazilian bossa nova"),
            tempo=(100, 144),
            progressions=_progressions(JAZZ_MAJOR, JAZZ_MINOR),
            moods=("relaxed", "romantic", "calm", "melancholic", "playful"),
            bands=(_band("melody 0.8: flute | tenor saxophone | vibraphone | piano", "comping: nylon guitar", "pad 0.2: strings", "bass: upright bass", "drums: brushed drums | jazz drums"),),
            solos=(_band("bossa_guitar: nylon guitar"), _band("bossa_guitar: nylon guitar"), _band("melody: flute | tenor saxophone", "bossa_guitar: nylon guitar"), SOLO_PIANO),
            drums=(
                {"kick": "X..xX..xX..xX..x", "rim": "X..X..X...X..X..", "hat": "xoxoxoxoxoxoxoxo"},
                {"kick": "X..xX..xX..xX..x", "rim": "..X...X.X..X..X.", "hat": "x.x.x.x.x.x.x.x."},
            ),
            bass=("R-----5-5-----R-", "R-----55-----R--"),
            comping=("x--x--x---x--x--", "x-..x-.x-.x-..x-", "x---..x-..x---x-"),
            chord_size=4,
        ),
        Style(
            names=("waltz", "waltz tune"),
            tempo=(84, 180),
            progressions=_progressions(CLASSICAL_MAJOR, CLASSICAL_MINOR),
            moods=("romantic", "playful", "happy", "melancholic", "calm"),
            bands=(
                _band("melody: violin | accordion | flute | clarinet", "comping: piano | accordion | strings", "bass: upright bass", "drums 0.3: brushed drums"),
                _band("melody: strings", "counter 0.5: french horn | cello", "comping: pizzicato strings | harp", "bass: upright bass", name="orchestra"),
            ),
            solos=(SOLO_PIANO, SOLO_PIANO, _band("keyboard: accordion | music box | harpsichord"), SOLO_NYLON, _band("melody: violin | flute", "comping: piano"), FLUTE_AND_HARP),
            drums=({"kick": "X...........", "snare": "....o...o...", "hat": "....x...x..."},),
            bass=("R---........", "R-----------"),
            comping=("....x---x---", "....x-..x-.."),
            arpeggios=("0.1.2.3.2.1.", "0.2.1.2.3.2."),
            beats_per_bar=3,
            band_share=0.45,
        ),
        Style(
            names=("funk", "funk groove", "funk jam"),
            tempo=(88, 124),
            progressions=_progressions(("1 1 4 1", "1 4 1 5", "1 1 2 5"), ("1 1 4 1", "1 1 1 5", "1 4 1 5", "1 1 6 5")),
            moods=("groovy", "energetic", "happy", "playful"),
            bands=(
                _band("stabs 0.7: brass section", "melody 0.4: alto saxophone | trumpet", "comping: clavinet | clean electric guitar | electric piano", "bass: slap bass | electric bass", "drums: drums"),
            ),
            solos=(_band("bass: slap bass"), _band("comping: clavinet"), _band("bass: slap bass", "drums: drums"), _band("comping: clean electric guitar", "drums: drums"), _band("drums: drums")),
            drums=(
                {"kick": "X..x..X...X..X..", "snare": "....X..o.o..X..o", "hat": "x.xxx.xxx.xxx.xx"},
                {"kick": "X.X.......X..X..", "snare": "....X..o.o.oX...", "hat": "xoxoxoxoxoxoxoxo", "open_hat": "......x........."},
            ),
            bass=("R..R..8.R.5.8.<.", "R.8..R.8R..5.8..", "R--.8.R...R.58<."),
            comping=("x.x..x.x..x.xx..", "..x.x..x..x.x..x", "x..xx.x..x..x.x.", "....X..x....X.x."),
            chord_size=4,
            swing=0.54,
            swing_unit=0.5,
        ),
        Style(
            names=("ambient", "ambient soundscape", "ambient piece"),
            tempo=(60, 92),
            progressions=_progressions(STATIC_MAJOR, STATIC_MINOR),
            moods=("calm", "dreamy", "mysterious", "dark"),
            bands=(
                _band("melody 0.5: flute | pan flute | vibraphone | electric piano", "arpeggio 0.6: harp | kalimba | synth | electric piano", "pad: synth pad | strings | choir", "drone 0.6: synth bass | cello"),
                _band("keyboard: piano", "pad: synth pad | strings"),
            ),
            solos=(_band("pad: synth pad"), _band("pad: strings | choir"), SOLO_PIANO, _band("picking: kalimba | harp"), _band("arpeggio: electric piano | vibraphone", "pad: synth pad")),
            comping=("x---------------", "x-------x-------"),
            arpeggios=("0...1...2...3...", "0...2...1...4...", "0-..2-..3-..1-.."),
            chord_size=5,
            band_share=0.5,
        ),
        Style(
            names=("techno", "techno track", "driving techno"),
            tempo=(120, 144),
            progressions=_progressions(("1 1 1 4", "1 1 4 1"), ("1 1 1 1", "1 1 1 6", "1 1 6 5", "1 1 4 1")),
            moods=("dark", "energetic", "mysterious", "dramatic"),
            bands=(_band("sequence: synth | synth lead | square lead", "stabs 0.4: synth | synth pad", "pad 0.4: synth pad", "bass: synth bass", "drums: electronic drums | 808 drums"),),
            solos=(_band("sequence: synth | synth lead"), _band("drums: electronic drums | 808 drums"), _band("bass: synth bass", "drums: electronic drums")),
            drums=(
                {"kick": "X...X...X...X...", "hat": "..x...x...x...x.", "clap": "....X.......X..."},
                {"kick": "X...X...X...X...", "hat": "oxxooxxooxxooxxo", "open_hat": "..x...x...x...x.", "clap": "....X.......X..."},
            ),
            bass=("..R...R...R...R.", "R.RR..R.R.RR..R.", "..RR..RR..RR..R8"),
            comping=("...x..x....x..x.", "x..x..x.x..x..x."),
            arpeggios=("0.0.2.0.3.0.2.1.", "0012001300120021", "3210321032103212"),
            is_sequenced=True,
            band_share=0.75,
        ),
        Style(
            names=("house", "house track", "deep house"),
            tempo=(114, 130),
            progressions=_progressions(POP_MAJOR, POP_MINOR),
            moods=("uplifting", "energetic", "groovy", "relaxed"),
            bands=(
                _band("melody 0.3: synth lead | alto saxophone | vibraphone", "comping: piano | organ | electric piano | synth", "pad 0.5: strings | synth pad", "bass: synth bass", "drums: electronic drums | 808 drums"),
            ),
            solos=(_band("comping: piano", "drums: electronic drums"), _band("drums: electronic drums"), _band("comping: organ", "drums: electronic drums")),
            drums=(
                {"kick": "X...X...X...X...", "clap": "....X.......X...", "open_hat": "..x...x...x...x."},
                {"kick": "X...X...X...X...", "clap": "....X.......X...", "hat": "xoxoxoxoxoxoxoxo", "open_hat": "..x...x...x...x."},
            ),
            bass=("..R...R...R...R.", "R..R..R...R..R..", "R-.R-.R-..8-.R-."),
            comping=("x..x..x...x..x..", "..x-..x-..x-..x-", "X..X..X.X..X..X."),
            chord_size=4,
            is_sequenced=True,
            band_share=0.8,
        ),
        Style(
            names=("baroque", "baroque piece", "baroque invention"),
            tempo=(66, 116),
            progressions=_progressions(CLASSICAL_MAJOR, CLASSICAL_MINOR),
            moods=("playful", "solemn", "happy", "melancholic", "calm"),
            bands=(
                _band("running: violin | flute | oboe", "counter 0.6: viola | bassoon | clarinet", "comping: harpsichord", "ground_line: cello | bassoon", name="chamber ensemble"),
                _band("melody: trumpet | oboe | violin", "pad: strings", "comping: harpsichord", "ground_line: cello"),
            ),
            solos=(_band("invention: harpsichord"), _band("invention: church organ"), _band("invention: piano"), _band("running: violin | cello | flute"), STRING_QUARTET, _band("picking: nylon guitar")),
            comping=("x---x---x---x---", "x-------x-------"),
            arpeggios=("0123012301230123", "0.1.2.1.3.1.2.1.", "0121321201213212"),
            band_share=0.35,
        ),
        Style(
            names=("chorale", "hymn", "sacred chorale"),
            tempo=(60, 88),
            progressions=_progressions(("15 64 14 51", "1645 1 4125 1", "1 4 25 1", "14 15 64 51"), ("15 64 14 51", "14 1 65 1", "1 4 25 1", "14 15 64 51")),
            moods=("solemn", "calm", "sad", "triumphant"),
            bands=(_band("chorale: choir", "chorale: church organ"), _band("chorale: brass section", "chorale: strings", name="orchestra"), _band("chorale: choir", "chorale: strings")),
            solos=(SOLO_CHOIR, SOLO_CHOIR, _band("chorale: church organ"), BRASS_QUARTET, STRING_QUARTET, WOODWIND_QUARTET, _band("chorale: organ | strings | piano")),
            band_share=0.25,
        ),
        Style(
            names=("lo-fi hip hop", "lo-fi beat", "lofi hip hop", "chill hop"),
            tempo=(66, 92),
            progressions=_progressions(JAZZ_MAJOR, JAZZ_MINOR),
            moods=("relaxed", "dreamy", "melancholic", "calm"),
            bands=(_band("melody 0.5: vibraphone | jazz guitar | flute | alto saxophone", "comping: electric piano | piano | jazz guitar", "pad 0.25: synth pad", "bass: electric bass | upright bass", "drums: 808 drums | drums"),),
            solos=(SOLO_ELECTRIC_PIANO, _band("comping: electric piano", "drums: 808 drums | drums"), _band("picking: jazz guitar")),
            drums=(
                {"kick": "X......x..X.....", "snare": "....X.......X...", "hat": "x.x.x.xox.x.x.x."},
                {"kick": "X..x......X..x..", "snare": "....X.......X...", "hat": "xoxoxoxoxoxoxoxo"},
            ),
            bass=("R-----..R-----5-", "R--R----..R-..<-"),
            comping=("x-------x-------", "x-----x-----x---", "x-----..x-----x-"),
            arpeggios=("0-1-2-3-2-1-2-1-",),
            swing=0.6,
            swing_unit=0.5,
            chord_size=5,
            band_share=0.7,
        ),
        Style(
            names=("reggae", "reggae groove", "roots reggae"),
            tempo=(64, 96),
            progressions=_progressions(("1 4 1 5", "1 5 4 1", "1 2 1 5", "1 4 5 4"), ("1 4 1 5", "1 7 1 5", "1 1 4 5")),
            moods=("relaxed", "happy", "groovy", "uplifting"),
            bands=(_band("melody 0.6: trombone | steel drums | harmonica | synth lead | alto saxophone", "skank: clean electric guitar | piano", "bubble 0.6: organ", "bass: electric bass", "drums: drums"),),
            solos=(_band("skank: clean electric guitar", "bass: electric bass", "drums: drums"), _band("melody: steel drums", "skank: clean electric guitar"), _band("keyboard: steel drums")),
            drums=(
                {"kick": "........X.......", "rim": "........X.......", "hat": "X.x.X.x.X.x.X.x."},
                {"kick": "X...X...X...X...", "rim": "....X.......X...", "hat": "x.xox.xox.xox.xo"},
            ),
            bass=("R-..R-R-..5-R-..", "..R-R-..8-..5-3-", "R---..R-3-5-R-.."),
            comping=("....X.......X...",),
            swing=0.56,
            swing_unit=0.5,
            band_share=0.8,
        ),
        Style(
            names=("march", "marching band tune", "military march"),
            tempo=(96, 126),
            progressions=_progressions(CLASSICAL_MAJOR, CLASSICAL_MINOR),
            moods=("triumphant", "happy", "solemn", "energetic"),
            bands=(_band("melody: trumpet | brass section | clarinet | flute", "counter 0.6: trombone | french horn", "offbeats: french horn | brass section", "bass: tuba", "drums: marching drums", name="marching band"),),
            solos=(BRASS_QUARTET, _band("keyboard: piano"), _band("drums: marching drums"), _band("melody: trumpet | flute", "drums: marching drums")),
            drums=(
                {"kick": "X.......X.......", "snare": "X.x.xxx.X.x.xxx.", "cymbal": "X.......X......."},
                {"kick": "X...X...X...X...", "snare": "X..xX.xxX..xX.xx"},
            ),
            bass=("R-..5-..R-..5-..", "R-..R-..5-..5-.."),
            comping=("..x...x...x...x.",),
            band_share=0.7,
        ),
        Style(
            names=("ballad", "slow ballad"),
            tempo=(60, 84),
            progressions=_progressions(POP_MAJOR, POP_MINOR),
            moods=("calm", "romantic", "sad", "melancholic", "dreamy"),
            bands=(_band("melody: violin | cello | alto saxophone | flute | oboe | choir", "arpeggio: piano | acoustic guitar | electric piano", "pad 0.6: strings", "bass 0.7: electric bass | upright bass", "drums 0.4: brushed drums | drums"),),
            solos=(SOLO_PIANO, SOLO_PIANO, SOLO_NYLON, SOLO_STEEL, SOLO_ELECTRIC_PIANO, STRINGS_AND_PIANO, _band("melody: flute | clarinet | oboe", "arpeggio: piano"), FLUTE_AND_HARP, _band("keyboard: music box | harp")),
            drums=({"kick": "X.........X.....", "snare": "....o.......o...", "hat": "x.x.x.x.x.x.x.x."}, {"kick": "X......X........", "rim": "....X.......X...", "ride": "x...x...x...x..."}),
            bass=("R-------5-------", "R-----------<---", "R-----R-5-------"),
            comping=("x-------x-------",),
            arpeggios=("0.1.2.3.2.1.2.1.", "0.2.3.2.4.2.3.2.", "0...1...2...1..."),
            band_share=0.4,
        ),
        Style(
            names=("blues", "blues shuffle", "slow blues"),
            tempo=(62, 126),
            progressions=_progressions(("1 1 1 1 4 4 1 1 5 4 1 5", "1 4 1 1 4 4 1 1 5 4 1 5"), ("1 1 1 1 4 4 1 1 6 5 1 5", "1 4 1 1 4 4 1 1 6 5 1 5")),
            moods=("relaxed", "sad", "groovy", "melancholic"),
            bands=(_band("melody 0.85: harmonica | jazz guitar | tenor saxophone | clean electric guitar | organ", "comping: piano | organ | clean electric guitar", "bass: electric bass | upright bass", "drums: drums"),),
            solos=(SOLO_PIANO, _band("picking: acoustic guitar"), _band("line: harmonica | tenor saxophone"), _band("melody: harmonica", "comping: acoustic guitar")),
            drums=({"kick": "X.....X..x..", "snare": "...X.....X..", "hat": "x.xx.xx.xx.x"}, {"kick": "X..X..X..X..", "snare": "...X.....X..", "ride": "X.xX.xX.xX.x"}),
            bass=("R--5--8--5--", "R-RR-R5-55-5", "walk"),
            comping=("x-....x-x...", "..x-....x-..", "x-xx-xx-xx-x"),
            arpeggios=("0-12-13-12-1", "0.2.2.3.2.1."),
            steps_per_beat=3,
            chord_size=3,
        ),
        Style(
            names=("folk", "folk song", "folk tune"),
            tempo=(84, 140),
            progressions=_progressions(("1 4 1 5", "1 5 4 1", "1 4 5 1", "1 6 4 5"), ("1 4 1 5", "1 7 6 5", "1 4 5 1", "1 6 7 1")),
            moods=("happy", "calm", "melancholic", "playful"),
            bands=(_band("melody: violin | harmonica | flute | accordion", "picking: banjo | acoustic guitar", "comping 0.6: acoustic guitar | accordion", "bass: upright bass"),),
            solos=(SOLO_STEEL, SOLO_STEEL, _band("picking: banjo"), _band("comping: acoustic guitar"), _band("melody: harmonica | violin | flute", "comping: acoustic guitar"), _band("line: violin | flute"), _band("melody: accordion", "bass: upright bass")),
            bass=("R---5---R---5---", "R---R---5---5---"),
            comping=("X---x-x-..x-x-x-", "X---x---X-x-x---", "X-x-x-x-X-x-x-x-"),
            arpeggios=("0.2.1.2.3.2.1.2.", "0.3.2.3.1.3.2.3.", "0213021302130213"),
            band_share=0.45,
        ),
        Style(
            names=("synthwave", "retro synthwave", "80s synthwave"),
            tempo=(80, 118),
            progressions=_progressions(POP_MAJOR, POP_MINOR),
            moods=("dark", "dreamy", "energetic", "dramatic"),
            bands=(_band("melody 0.6: synth lead | square lead", "sequence 0.6: synth", "pad: synth pad | strings", "bass: synth bass", "drums: electronic drums"),),
            solos=(_band("sequence: synth | square lead"), _band("melody: synth lead", "pad: synth pad"), _band("sequence: synth", "pad: synth pad")),
            drums=({"kick": "X...X...X...X...", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."}, {"kick": "X.......X.......", "snare": "....X.......X...", "hat": "xoxoxoxoxoxoxoxo"}),
            bass=("RRRRRRRRRRRRRRRR", "R.RRR.RRR.RRR.RR", "R.8.R.8.R.8.R.8."),
            arpeggios=("0123212301232123", "0.2.1.2.3.2.1.2.", "0213021302130213"),
            is_sequenced=True,
            band_share=0.75,
        ),
        Style(
            names=("cinematic", "orchestral film score", "cinematic orchestral piece"),
            tempo=(60, 132),
            progressions=_progressions(("1 6 4 5", "1 4 6 5", "1 5 6 4"), ("1 6 4 5", "1 6 7 1", "1 7 6 5", "1 4 6 5")),
            moods=("dramatic", "triumphant", "mysterious", "sad", "solemn"),
            bands=(
                _band("melody: french horn | trumpet | violin | choir | cello", "counter 0.4: cello | french horn", "ostinato: strings | pizzicato strings", "pad: strings | choir | brass section", "bass: upright bass", "drums 0.6: timpani", name="orchestra"),
            ),
            solos=(_band("ostinato: strings"), _band("pad: strings", "melody: cello | french horn | flute"), STRING_QUARTET, SOLO_CHOIR, SOLO_STRINGS, SOLO_WINDS, SOLO_HARP, STRINGS_AND_PIANO),
            drums=({"timpani": "X.......x.....xx"}, {"timpani": "X.....x.X......."}),
            bass=("R---------------", "R-------R-------"),
            arpeggios=("0.0.1.0.2.0.1.0.", "0010020100100201", "0.2.1.2.3.2.1.2."),
            band_share=0.55,
        ),
        Style(
            names=("Latin", "salsa", "Latin dance tune"),
            tempo=(92, 128),
            progressions=_progressions(("1 4 5 4", "1 4 5 1", "1 2 5 1"), ("1 4 5 4", "1 4 5 1", "1 1 5 5")),
            moods=("happy", "energetic", "playful", "groovy"),
            bands=(_band("melody 0.6: trumpet | flute | trombone", "stabs 0.5: brass section", "montuno: piano", "bass: upright bass | electric bass", "drums: drums"),),
            solos=(_band("montuno: piano"), _band("montuno: piano", "drums: drums"), _band("keyboard: marimba | steel drums"), _band("drums: drums")),
            drums=({"conga": "x.xox.XXx.xox.XX", "clave": "X..X..X...X.X...", "shaker": "xoxoxoxoxoxoxoxo"}, {"conga": "x.xox.XXx.xox.XX", "cowbell": "X...x.x.X...x.x.", "clave": "..X.X...X..X..X.", "kick": "......x.......x."}),
            bass=("R-----5-----8---", "......R-----5---"),
            comping=("x.xx.xx.x.xx.xx.",),
            arpeggios=("0.23.20.3.02.32.", "0.12.31.2.13.21."),
            band_share=0.7,
        ),
    )
}
