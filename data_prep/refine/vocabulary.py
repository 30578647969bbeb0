"""The words of captions that state a fact: instruments and voices, tempi, modes and numbers."""

from data_prep.captions import FAST_BPM, MODERATE_BPM, SLOW_BPM
from data_prep.composer.instruments import INSTRUMENTS


def _split(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(","))


# Besides what the composer of this project plays; in the singular where there is one. Who sings is a fact too.
_OTHER_INSTRUMENTS = _split(
    "bagpipes, balalaika, bandoneon, baritone saxophone, bass, bass drum, bell, bodhran, bongo, bouzouki, brass, "
    "cajon, castanets, celesta, chimes, clap, claves, clavichord, concertina, conga, contrabass, cor anglais, cornet, "
    "cowbell, cymbal, didgeridoo, djembe, drum, drum machine, dulcimer, electric violin, english horn, erhu, "
    "euphonium, fiddle, flugelhorn, fretless bass, glockenspiel, gong, guitar, guqin, guzheng, handpan, harmonium, "
    "hi hat, hurdy gurdy, kazoo, kettledrum, keyboard, kick drum, koto, lap steel, lute, lyre, mandolin, maracas, "
    "mellotron, melodica, ocarina, orchestra, oud, pedal steel, percussion, piccolo, pipa, recorder, sampler, santur, "
    "sarod, shaker, shakuhachi, shamisen, sitar, slide guitar, soprano saxophone, steel guitar, string, "
    "synthesiser, tabla, taiko, tambourine, theremin, triangle, turntable, twelve string guitar, ukulele, "
    "viola da gamba, vuvuzela, washboard, whistle, woodwind, xylophone, zither"
)
_VOICES = _split(
    "a cappella, acapella, baritone, beatbox, chant, contralto, rap, rapper, singer, singing, soprano, tenor, vocal, "
    "vocalist, voice, whistling, boy, child, children, female, girl, male, man, men, woman, women"
)
INSTRUMENT_WORDS = tuple(
    sorted(
        {name.lower().replace("-", " ") for instrument in INSTRUMENTS.values() for name in instrument.names}
        | {*_OTHER_INSTRUMENTS, *_VOICES},
        key=lambda name: (-len(name), name),  # the longest first, so that "bass drum" is not read as "bass"
    )
)
# Names of one thing. A wider word needs no entry: who says "acoustic guitar" has said "guitar".
SAME_INSTRUMENTS = (
    _split("acoustic piano, piano"),
    _split("bass guitar, electric bass"),
    _split("brass section, brass, horn section"),
    _split("choir, choir voices, vocal choir"),
    _split("contrabass, double bass, upright bass, acoustic bass"),
    _split("drum, drum kit, drum set"),
    _split("female, woman, women"),
    _split("kettledrum, timpani"),
    _split("male, man, men"),
    _split("sax, saxophone"),
    _split("singer, singing, vocal, vocalist, voice"),
    _split("string, string ensemble, string section"),
    _split("synth, synthesiser, synthesizer"),
    _split("vibes, vibraphone"),
)

# Words for a tempo, each with the range of beats a minute that bears it out.
TEMPO_WORDS = (
    ((0, MODERATE_BPM), _split("slow, slowly, downtempo, adagio, largo, lento")),
    (
        (SLOW_BPM, FAST_BPM),
        _split("mid tempo, midtempo, medium tempo, moderate tempo, moderately paced, moderato, andante"),
    ),
    (
        (MODERATE_BPM, 1000),
        _split("fast, quick, rapid, brisk, upbeat, up tempo, uptempo, lively, allegro, presto, speedy"),
    ),
)
MODES = _split("major, minor, dorian, phrygian, lydian, mixolydian, aeolian, locrian, pentatonic")
NUMBER_WORDS = {
    **{
        word: number
        for number, word in enumerate(
            _split(
                "two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, "
                "sixteen, seventeen, eighteen, nineteen, twenty"
            ),
            start=2,
        )
    },
    **dict(
        zip(_split("thirty, forty, fifty, sixty, seventy, eighty, ninety, hundred"), range(30, 101, 10), strict=True)
    ),
}
GROUP_SIZES = _split("duo, duet, trio, quartet, quintet, sextet, septet, octet, dozen")
