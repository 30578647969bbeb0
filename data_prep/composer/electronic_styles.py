"""Music of synthesizers and drum machines; see `data_prep.composer.style` for the notation."""

from data_prep.composer.style import (
    JAZZ_MAJOR,
    JAZZ_MINOR,
    POP_MAJOR,
    POP_MINOR,
    SOLO_ELECTRIC_PIANO,
    SOLO_PIANO,
    STATIC_MAJOR,
    STATIC_MINOR,
    Style,
    ensemble,
    progressions,
)


ELECTRONIC_STYLES = (
    Style(
        names=("ambient", "ambient soundscape", "ambient piece"),
        tempo=(60, 92),
        progressions=progressions(STATIC_MAJOR, STATIC_MINOR),
        moods=("calm", "dreamy", "mysterious", "dark"),
        bands=(
            ensemble(
                "melody 0.5: flute | pan flute | vibraphone | electric piano",
                "arpeggio 0.6: harp | kalimba | synth | electric piano",
                "pad: synth pad | strings | choir",
                "drone 0.6: synth bass | cello",
            ),
            ensemble("keyboard: piano", "pad: synth pad | strings"),
        ),
        solos=(
            ensemble("pad: synth pad"),
            ensemble("pad: strings | choir"),
            SOLO_PIANO,
            ensemble("picking: kalimba | harp"),
            ensemble("arpeggio: electric piano | vibraphone", "pad: synth pad"),
        ),
        comping=("x---------------", "x-------x-------"),
        arpeggios=("0...1...2...3...", "0...2...1...4...", "0-..2-..3-..1-.."),
        chord_size=4,
        band_share=0.5,
    ),
    Style(
        names=("techno", "techno track", "techno tune"),
        tempo=(120, 144),
        progressions=progressions(("1 1 1 4", "1 1 4 1"), ("1 1 1 1", "1 1 1 6", "1 1 6 5", "1 1 4 1")),
        moods=("dark", "energetic", "mysterious", "dramatic"),
        bands=(
            ensemble(
                "sequence: synth | synth lead | square lead",
                "stabs 0.4: synth | synth pad",
                "pad 0.4: synth pad",
                "bass: synth bass",
                "drums: electronic drums | 808 drums",
            ),
        ),
        solos=(
            ensemble("sequence: synth | synth lead"),
            ensemble("drums: electronic drums | 808 drums"),
            ensemble("bass: synth bass", "drums: electronic drums"),
        ),
        drums=(
            {"kick": "X...X...X...X...", "hat": "..x...x...x...x.", "clap": "....X.......X..."},
            {
                "kick": "X...X...X...X...",
                "hat": "oxxooxxooxxooxxo",
                "open_hat": "..x...x...x...x.",
                "clap": "....X.......X...",
            },
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
        progressions=progressions(POP_MAJOR, POP_MINOR),
        moods=("uplifting", "energetic", "groovy", "relaxed"),
        bands=(
            ensemble(
                "melody 0.3: synth lead | alto saxophone | vibraphone",
                "comping: piano | organ | electric piano | synth",
                "pad 0.5: strings | synth pad",
                "bass: synth bass",
                "drums: electronic drums | 808 drums",
            ),
        ),
        solos=(
            ensemble("comping: piano", "drums: electronic drums"),
            ensemble("drums: electronic drums"),
            ensemble("comping: organ", "drums: electronic drums"),
        ),
        drums=(
            {"kick": "X...X...X...X...", "clap": "....X.......X...", "open_hat": "..x...x...x...x."},
            {
                "kick": "X...X...X...X...",
                "clap": "....X.......X...",
                "hat": "xoxoxoxoxoxoxoxo",
                "open_hat": "..x...x...x...x.",
            },
        ),
        bass=("..R...R...R...R.", "R..R..R...R..R..", "R-.R-.R-..8-.R-."),
        comping=("x..x..x...x..x..", "..x-..x-..x-..x-", "X..X..X.X..X..X."),
        chord_size=4,
        is_sequenced=True,
        band_share=0.8,
    ),
    Style(
        names=("lo-fi hip hop", "lo-fi beat", "lofi hip hop", "chill hop"),
        tempo=(66, 92),
        progressions=progressions(JAZZ_MAJOR, JAZZ_MINOR),
        moods=("relaxed", "dreamy", "melancholic", "calm"),
        bands=(
            ensemble(
                "melody 0.5: vibraphone | jazz guitar | flute | alto saxophone",
                "comping: electric piano | piano | jazz guitar",
                "pad 0.25: synth pad",
                "bass: electric bass | upright bass",
                "drums: 808 drums | drums",
            ),
        ),
        solos=(
            SOLO_ELECTRIC_PIANO,
            ensemble("comping: electric piano", "drums: 808 drums | drums"),
            ensemble("picking: jazz guitar"),
        ),
        drums=(
            {"kick": "X......x..X.....", "snare": "....X.......X...", "hat": "x.x.x.xox.x.x.x."},
            {"kick": "X..x......X..x..", "snare": "....X.......X...", "hat": "xoxoxoxoxoxoxoxo"},
        ),
        bass=("R-----..R-----5-", "R--R----..R-..<-"),
        comping=("x-------x-------", "x-----x-----x---", "x-----..x-----x-"),
        arpeggios=("0-1-2-3-2-1-2-1-",),
        swing=0.6,
        swing_unit=0.5,
        chord_size=4,
        band_share=0.7,
    ),
    Style(
        names=("synthwave", "retro synthwave", "synthwave track"),
        tempo=(80, 118),
        progressions=progressions(POP_MAJOR, POP_MINOR),
        moods=("dark", "dreamy", "energetic", "dramatic"),
        bands=(
            ensemble(
                "melody 0.6: synth lead | square lead",
                "sequence 0.6: synth",
                "pad: synth pad | strings",
                "bass: synth bass",
                "drums: electronic drums",
            ),
        ),
        solos=(
            ensemble("sequence: synth | square lead"),
            ensemble("melody: synth lead", "pad: synth pad"),
            ensemble("sequence: synth", "pad: synth pad"),
        ),
        drums=(
            {"kick": "X...X...X...X...", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "X.......X.......", "snare": "....X.......X...", "hat": "xoxoxoxoxoxoxoxo"},
        ),
        bass=("RRRRRRRRRRRRRRRR", "R.RRR.RRR.RRR.RR", "R.8.R.8.R.8.R.8."),
        arpeggios=("0123212301232123", "0.2.1.2.3.2.1.2.", "0213021302130213"),
        is_sequenced=True,
        band_share=0.75,
    ),
)
