"""Pop, rock and their relatives; see `data_prep.composer.style` for the notation."""

from data_prep.composer.style import (
    FLUTE_AND_HARP,
    POP_MAJOR,
    POP_MINOR,
    SOLO_ELECTRIC_PIANO,
    SOLO_NYLON,
    SOLO_PIANO,
    SOLO_STEEL,
    STRINGS_AND_PIANO,
    Style,
    ensemble,
    progressions,
)


POPULAR_STYLES = (
    Style(
        names=("pop", "pop song", "pop tune"),
        tempo=(84, 132),
        progressions=progressions(POP_MAJOR, POP_MINOR),
        moods=("happy", "uplifting", "romantic", "melancholic", "energetic", "relaxed"),
        bands=(
            ensemble(
                "melody 0.8: synth lead | flute | alto saxophone | piano | violin",
                "comping: piano | acoustic guitar | electric piano | clean electric guitar",
                "pad 0.5: strings | synth pad",
                "bass: electric bass",
                "drums: drums",
            ),
        ),
        solos=(
            SOLO_PIANO,
            SOLO_STEEL,
            SOLO_ELECTRIC_PIANO,
            ensemble("melody: flute | violin", "comping: piano"),
            ensemble("drums: drums"),
        ),
        drums=(
            {"kick": "X.......X.X.....", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "X.....X.X.......", "snare": "....X.......X...", "hat": "xoxoxoxoxoxoxoxo"},
            {
                "kick": "X..X..X...X.....",
                "snare": "....X.......X..o",
                "hat": "x.x.x.x.x.x.x.x.",
                "open_hat": "..............x.",
            },
        ),
        bass=("R-R-R-R-R-R-R-R-", "R-----R-R-----<-", "R---R---5---R---", "R--R--R-R--R--<-"),
        comping=("x-------x-------", "X---x---X---x---", "X-----x-..x-x---", "X-x-..x-X-x-..x-"),
        arpeggios=("0.1.2.3.2.1.2.1.", "0.2.1.2.3.2.1.2."),
    ),
    Style(
        names=("rock", "rock song", "rock tune"),
        tempo=(100, 160),
        progressions=progressions(
            ("1 4 5 4", "1 5 4 1", "1 4 1 5", "1 6 4 5"), ("1 7 6 5", "1 6 7 1", "1 4 5 1", "1 6 4 5")
        ),
        moods=("energetic", "dramatic", "dark", "happy", "uplifting"),
        bands=(
            ensemble(
                "melody 0.5: distorted guitar | organ",
                "power: distorted guitar",
                "bass: electric bass",
                "drums: rock drums",
            ),
            ensemble(
                "melody 0.7: distorted guitar",
                "comping: clean electric guitar",
                "organ_pad 0.4: organ",
                "bass: electric bass",
                "drums: rock drums",
            ),
        ),
        solos=(
            ensemble("power: distorted guitar"),
            ensemble("picking: clean electric guitar"),
            ensemble("power: distorted guitar", "drums: rock drums"),
            ensemble("drums: rock drums"),
        ),
        drums=(
            {"kick": "X.......X.X.....", "snare": "....X.......X...", "hat": "X.x.X.x.X.x.X.x."},
            {
                "kick": "X.X.....X.X...x.",
                "snare": "....X.......X...",
                "crash": "X...............",
                "ride": "x...x...x...x...",
            },
            {"kick": "X.....X.X.....X.", "snare": "....X.......X...", "open_hat": "X...x...X...x..."},
        ),
        bass=("R-R-R-R-R-R-R-R-", "R-R-R-R-R-R-5-<-", "R---R-R-R---R-R-"),
        comping=("X-x-X-x-X-x-X-x-", "X-----x-X-------", "X---x-x-..x-x-x-"),
    ),
    Style(
        names=("heavy metal", "metal"),
        tempo=(110, 180),
        progressions=progressions(("1 4 5 1", "1 6 4 5"), ("1 1 6 7", "1 6 7 1", "1 7 6 5", "1 1 4 5")),
        moods=("dark", "energetic", "dramatic"),
        bands=(
            ensemble(
                "melody 0.4: distorted guitar",
                "power: distorted guitar",
                "choir_pad 0.15: choir",
                "bass: electric bass",
                "drums: rock drums",
            ),
        ),
        solos=(ensemble("power: distorted guitar"), ensemble("power: distorted guitar", "drums: rock drums")),
        drums=(
            {"kick": "X.xxX.xxX.xxX.xx", "snare": "....X.......X...", "crash": "X.......x......."},
            {"kick": "XxxxXxxxXxxxXxxx", "snare": "....X.......X...", "ride": "x.x.x.x.x.x.x.x."},
        ),
        bass=("R-RRR-RRR-RRR-RR", "RRRRRRRRRRRRRRRR"),
        comping=("X-xxX-xxX-xxX-xx", "xxxXxxxXxxxXxxXx", "X---X-xxX---X-xx"),
        band_share=0.75,
    ),
    Style(
        names=("funk", "funk groove", "funk jam"),
        tempo=(88, 124),
        progressions=progressions(("1 1 4 1", "1 4 1 5", "1 1 2 5"), ("1 1 4 1", "1 1 1 5", "1 4 1 5", "1 1 6 5")),
        moods=("groovy", "energetic", "happy", "playful"),
        bands=(
            ensemble(
                "stabs 0.7: brass section",
                "melody 0.4: alto saxophone | trumpet",
                "comping: clavinet | clean electric guitar | electric piano",
                "bass: slap bass | electric bass",
                "drums: drums",
            ),
        ),
        solos=(
            ensemble("bass: slap bass"),
            ensemble("comping: clavinet"),
            ensemble("bass: slap bass", "drums: drums"),
            ensemble("comping: clean electric guitar", "drums: drums"),
            ensemble("drums: drums"),
        ),
        drums=(
            {"kick": "X..x..X...X..X..", "snare": "....X..o.o..X..o", "hat": "x.xxx.xxx.xxx.xx"},
            {
                "kick": "X.X.......X..X..",
                "snare": "....X..o.o.oX...",
                "hat": "xoxoxoxoxoxoxoxo",
                "open_hat": "......x.........",
            },
        ),
        bass=("R..R..8.R.5.8.<.", "R.8..R.8R..5.8..", "R--.8.R...R.58<."),
        comping=("x.x..x.x..x.xx..", "..x.x..x..x.x..x", "x..xx.x..x..x.x.", "....X..x....X.x."),
        chord_size=4,
        swing=0.54,
        swing_unit=0.5,
    ),
    Style(
        names=("reggae", "reggae groove", "roots reggae"),
        tempo=(64, 96),
        progressions=progressions(("1 4 1 5", "1 5 4 1", "1 2 1 5", "1 4 5 4"), ("1 4 1 5", "1 7 1 5", "1 1 4 5")),
        moods=("relaxed", "happy", "groovy", "uplifting"),
        bands=(
            ensemble(
                "melody 0.6: trombone | steel drums | harmonica | synth lead | alto saxophone",
                "skank: clean electric guitar | piano",
                "bubble 0.6: organ",
                "bass: electric bass",
                "drums: drums",
            ),
        ),
        solos=(
            ensemble("skank: clean electric guitar", "bass: electric bass", "drums: drums"),
            ensemble("melody: steel drums", "skank: clean electric guitar"),
            ensemble("keyboard: steel drums"),
        ),
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
        names=("ballad", "ballad piece"),
        tempo=(60, 84),
        progressions=progressions(POP_MAJOR, POP_MINOR),
        moods=("calm", "romantic", "sad", "melancholic", "dreamy"),
        bands=(
            ensemble(
                "melody: violin | cello | alto saxophone | flute | oboe | choir",
                "arpeggio: piano | acoustic guitar | electric piano",
                "pad 0.6: strings",
                "bass 0.7: electric bass | upright bass",
                "drums 0.4: brushed drums | drums",
            ),
        ),
        solos=(
            SOLO_PIANO,
            SOLO_PIANO,
            SOLO_NYLON,
            SOLO_STEEL,
            SOLO_ELECTRIC_PIANO,
            STRINGS_AND_PIANO,
            ensemble("melody: flute | clarinet | oboe", "arpeggio: piano"),
            FLUTE_AND_HARP,
            ensemble("keyboard: music box | harp"),
        ),
        drums=(
            {"kick": "X.........X.....", "snare": "....o.......o...", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "X......X........", "rim": "....X.......X...", "ride": "x...x...x...x..."},
        ),
        bass=("R-------5-------", "R-----------<---", "R-----R-5-------"),
        comping=("x-------x-------",),
        arpeggios=("0.1.2.3.2.1.2.1.", "0.2.3.2.4.2.3.2.", "0...1...2...1..."),
        band_share=0.4,
    ),
    Style(
        names=("folk", "folk song", "folk tune"),
        tempo=(84, 140),
        progressions=progressions(
            ("1 4 1 5", "1 5 4 1", "1 4 5 1", "1 6 4 5"), ("1 4 1 5", "1 7 6 5", "1 4 5 1", "1 6 7 1")
        ),
        moods=("happy", "calm", "melancholic", "playful"),
        bands=(
            ensemble(
                "melody: violin | harmonica | flute | accordion",
                "picking: banjo | acoustic guitar",
                "comping 0.6: acoustic guitar | accordion",
                "bass: upright bass",
            ),
        ),
        solos=(
            SOLO_STEEL,
            SOLO_STEEL,
            ensemble("picking: banjo"),
            ensemble("comping: acoustic guitar"),
            ensemble("melody: harmonica | violin | flute", "comping: acoustic guitar"),
            ensemble("line: violin | flute"),
            ensemble("melody: accordion", "bass: upright bass"),
        ),
        bass=("R---5---R---5---", "R---R---5---5---"),
        comping=("X---x-x-..x-x-x-", "X---x---X-x-x---", "X-x-x-x-X-x-x-x-"),
        arpeggios=("0.2.1.2.3.2.1.2.", "0.3.2.3.1.3.2.3.", "0213021302130213"),
        band_share=0.45,
    ),
    Style(
        names=("blues", "blues shuffle", "blues tune"),
        tempo=(62, 126),
        progressions=progressions(
            ("1 1 1 1 4 4 1 1 5 4 1 5", "1 4 1 1 4 4 1 1 5 4 1 5"),
            ("1 1 1 1 4 4 1 1 6 5 1 5", "1 4 1 1 4 4 1 1 6 5 1 5"),
        ),
        moods=("relaxed", "sad", "groovy", "melancholic"),
        bands=(
            ensemble(
                "melody 0.85: harmonica | jazz guitar | tenor saxophone | clean electric guitar | organ",
                "comping: piano | organ | clean electric guitar",
                "bass: electric bass | upright bass",
                "drums: drums",
            ),
        ),
        solos=(
            SOLO_PIANO,
            ensemble("picking: acoustic guitar"),
            ensemble("line: harmonica | tenor saxophone"),
            ensemble("melody: harmonica", "comping: acoustic guitar"),
        ),
        drums=(
            {"kick": "X.....X..x..", "snare": "...X.....X..", "hat": "x.xx.xx.xx.x"},
            {"kick": "X..X..X..X..", "snare": "...X.....X..", "ride": "X.xX.xX.xX.x"},
        ),
        bass=("R--5--8--5--", "R-RR-R5-55-5", "walk"),
        comping=("x-....x-x...", "..x-....x-..", "x-xx-xx-xx-x"),
        arpeggios=("0-12-13-12-1", "0.2.2.3.2.1."),
        steps_per_beat=3,
        chord_size=3,
    ),
)
