"""Jazz and its Latin neighbours; see `data_prep.composer.style` for the notation."""

from data_prep.composer.style import (
    JAZZ_MAJOR,
    JAZZ_MINOR,
    SOLO_BRASS,
    SOLO_MALLETS,
    SOLO_ORGAN,
    SOLO_PIANO,
    SOLO_SAX,
    Style,
    ensemble,
    progressions,
)


JAZZ_STYLES = (
    Style(
        names=("jazz swing", "swing jazz", "jazz", "swing tune"),
        tempo=(92, 180),
        progressions=progressions(JAZZ_MAJOR, JAZZ_MINOR),
        moods=("relaxed", "happy", "playful", "groovy", "romantic", "energetic"),
        bands=(
            ensemble(
                "melody 0.85: tenor saxophone | alto saxophone | trumpet | clarinet | jazz guitar | vibraphone",
                "comping: piano | jazz guitar",
                "bass: upright bass",
                "drums: jazz drums | brushed drums",
            ),
            ensemble("keyboard: piano", "bass: upright bass", "drums: jazz drums | brushed drums", name="piano trio"),
            ensemble(
                "melody: brass section", "comping: piano", "bass: upright bass", "drums: jazz drums", name="big band"
            ),
        ),
        solos=(
            SOLO_BRASS,
            SOLO_ORGAN,
            SOLO_PIANO,
            SOLO_SAX,
            ensemble("comping: jazz guitar"),
            SOLO_MALLETS,
            ensemble("melody: tenor saxophone | clarinet", "comping: piano"),
            ensemble("melody: jazz guitar", "bass: upright bass"),
        ),
        drums=(
            {"ride": "X...x.x.X...x.x.", "hat": "....x.......x...", "kick": "o.......o......."},
            {
                "ride": "X...x.x.x.x.x.x.",
                "hat": "....x.......x...",
                "snare": "......o.......o.",
                "kick": "o...o...o...o...",
            },
        ),
        bass=("walk",),
        comping=("x-....x-........", "......x-....x---", "x-....x-....x-..", "....x-....x-...."),
        swing=0.64,
        chord_size=4,
        band_share=0.55,
    ),
    Style(
        names=("bossa nova", "bossa", "Brazilian bossa nova"),
        tempo=(100, 144),
        progressions=progressions(JAZZ_MAJOR, JAZZ_MINOR),
        moods=("relaxed", "romantic", "calm", "melancholic", "playful"),
        bands=(
            ensemble(
                "melody 0.8: flute | tenor saxophone | vibraphone | piano",
                "comping: nylon guitar",
                "pad 0.2: strings",
                "bass: upright bass",
                "drums: brushed drums | jazz drums",
            ),
        ),
        solos=(
            ensemble("bossa_guitar: nylon guitar"),
            ensemble("bossa_guitar: nylon guitar"),
            ensemble("melody: flute | tenor saxophone", "bossa_guitar: nylon guitar"),
            SOLO_PIANO,
        ),
        drums=(
            {"kick": "X..xX..xX..xX..x", "rim": "X..X..X...X..X..", "hat": "xoxoxoxoxoxoxoxo"},
            {"kick": "X..xX..xX..xX..x", "rim": "..X...X.X..X..X.", "hat": "x.x.x.x.x.x.x.x."},
        ),
        bass=("R-----5-5-----R-", "R-----55-----R--"),
        comping=("x--x--x---x--x--", "x-..x-.x-.x-..x-", "x---..x-..x---x-"),
        chord_size=4,
    ),
    Style(
        names=("Latin", "salsa", "Latin dance tune"),
        tempo=(92, 128),
        progressions=progressions(("1 4 5 4", "1 4 5 1", "1 2 5 1"), ("1 4 5 4", "1 4 5 1", "1 1 5 5")),
        moods=("happy", "energetic", "playful", "groovy"),
        bands=(
            ensemble(
                "melody 0.6: trumpet | flute | trombone",
                "stabs 0.5: brass section",
                "montuno: piano",
                "bass: upright bass | electric bass",
                "drums: drums",
            ),
        ),
        solos=(
            SOLO_MALLETS,
            ensemble("montuno: piano"),
            ensemble("montuno: piano", "drums: drums"),
            ensemble("keyboard: marimba | steel drums"),
            ensemble("drums: drums"),
        ),
        drums=(
            {"conga": "x.xox.XXx.xox.XX", "clave": "X..X..X...X.X...", "shaker": "xoxoxoxoxoxoxoxo"},
            {
                "conga": "x.xox.XXx.xox.XX",
                "cowbell": "X...x.x.X...x.x.",
                "clave": "..X.X...X..X..X.",
                "kick": "......x.......x.",
            },
        ),
        bass=("R-----5-----8---", "......R-----5---"),
        comping=("x.xx.xx.x.xx.xx.",),
        arpeggios=("0.23.20.3.02.32.", "0.12.31.2.13.21."),
        band_share=0.6,
    ),
)
