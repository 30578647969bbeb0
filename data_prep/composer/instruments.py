"""The instruments the composer writes for: their names in captions, General MIDI program and comfortable range."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """One instrument of the orchestra.

    Args:
        names: What captions may call it; the first name is the one in the tags.
        program: General MIDI program number, counted from zero.
        low: Lowest pitch the composer uses.
        high: Highest pitch the composer uses.
        is_plucked: Whether a note dies away by itself, so that it may ring on (piano, guitar, harp, mallets).
        is_drum_kit: Whether `program` selects a drum kit.
        volume: MIDI channel volume that balances it against the others.
    """

    names: tuple[str, ...]
    program: int
    low: int = 48
    high: int = 84
    is_plucked: bool = False
    is_drum_kit: bool = False
    volume: int = 100

    @property
    def name(self) -> str:
        return self.names[0]


def _plucked(program: int, low: int, high: int, *names: str, volume: int = 100) -> Instrument:
    return Instrument(names=names, program=program, low=low, high=high, is_plucked=True, volume=volume)


def _sustained(program: int, low: int, high: int, *names: str, volume: int = 100) -> Instrument:
    return Instrument(names=names, program=program, low=low, high=high, volume=volume)


def _drums(program: int, *names: str, volume: int = 105) -> Instrument:
    return Instrument(names=names, program=program, is_drum_kit=True, is_plucked=True, volume=volume)


INSTRUMENTS = {
    instrument.name: instrument
    for instrument in (
        _plucked(0, 36, 96, "piano", "acoustic piano", "grand piano"),
        _plucked(4, 40, 88, "electric piano", "Rhodes piano", "Rhodes", volume=88),
        _plucked(6, 41, 86, "harpsichord"),
        _plucked(7, 43, 84, "clavinet", volume=92),
        _plucked(10, 60, 96, "music box"),
        _plucked(11, 53, 86, "vibraphone", "vibes"),
        _plucked(12, 48, 86, "marimba"),
        _sustained(16, 41, 84, "organ", "Hammond organ", "electric organ", volume=102),
        _sustained(19, 36, 84, "church organ", "pipe organ", volume=88),
        _sustained(21, 53, 86, "accordion", volume=98),
        _sustained(22, 60, 88, "harmonica", volume=92),
        _plucked(24, 40, 80, "nylon guitar", "classical guitar", "nylon-string guitar"),
        _plucked(25, 40, 81, "acoustic guitar", "steel-string guitar", "folk guitar"),
        _plucked(26, 40, 81, "jazz guitar", volume=105),
        _plucked(27, 40, 82, "clean electric guitar", "electric guitar"),
        _sustained(30, 40, 82, "distorted guitar", "distorted electric guitar", "heavy guitar", volume=82),
        _plucked(32, 28, 55, "upright bass", "double bass", "acoustic bass", volume=120),
        _plucked(33, 28, 55, "electric bass", "bass guitar", volume=108),
        _plucked(36, 28, 58, "slap bass", volume=104),
        _plucked(38, 28, 55, "synth bass", "synthesizer bass", volume=96),
        _sustained(40, 55, 93, "violin"),
        _sustained(41, 48, 84, "viola"),
        _sustained(42, 36, 72, "cello"),
        _plucked(45, 43, 86, "pizzicato strings", "plucked strings"),
        _plucked(46, 36, 96, "harp", "concert harp"),
        _plucked(47, 38, 55, "timpani", volume=120),
        _sustained(48, 40, 88, "strings", "string section", "string ensemble", volume=92),
        _sustained(52, 48, 79, "choir", "choir voices", "vocal choir", volume=98),
        _sustained(56, 55, 82, "trumpet", volume=92),
        _sustained(57, 43, 70, "trombone", volume=94),
        _sustained(58, 29, 55, "tuba", volume=100),
        _sustained(60, 41, 74, "french horn", "horn", volume=96),
        _sustained(61, 48, 80, "brass section", "brass", "horn section", volume=96),
        _sustained(65, 55, 80, "alto saxophone", "saxophone", "sax", volume=92),
        _sustained(66, 48, 74, "tenor saxophone", "saxophone", "sax", volume=92),
        _sustained(68, 60, 86, "oboe", volume=90),
        _sustained(70, 36, 68, "bassoon", volume=96),
        _sustained(71, 52, 86, "clarinet", volume=96),
        _sustained(73, 62, 93, "flute", volume=100),
        _sustained(75, 62, 90, "pan flute", volume=98),
        _sustained(81, 52, 88, "synth lead", "saw lead", "synthesizer lead", volume=78),
        _sustained(80, 55, 90, "square lead", "chiptune lead", "square-wave synth", volume=74),
        _sustained(89, 43, 84, "synth pad", "warm pad", "ambient pad", volume=96),
        _plucked(90, 45, 88, "synth", "synthesizer", "polysynth", volume=86),
        _plucked(105, 48, 81, "banjo"),
        _plucked(108, 55, 88, "kalimba"),
        _plucked(114, 55, 86, "steel drums", "steel pan"),
        _drums(0, "drums", "drum kit", "drum set", volume=112),
        _drums(32, "jazz drums", "drums", "drum kit", volume=118),
        _drums(40, "brushed drums", "brushes", "soft drums", volume=115),
        _drums(16, "rock drums", "drums", "drum kit"),
        _drums(24, "electronic drums", "drum machine", "electronic beats"),
        _drums(25, "808 drums", "drum machine", "808 drum machine", volume=92),
        _drums(48, "marching drums", "snare drum", "drums"),
    )
}


def get_instrument(name: str) -> Instrument:
    """Looks an instrument up by its tag name."""
    if name not in INSTRUMENTS:
        raise ValueError(f"`name` must be one of {sorted(INSTRUMENTS)}, got {name!r}.")
    return INSTRUMENTS[name]
