"""Reads what a prompt says of tempo, key and metre: "allegro in E flat minor", "a waltz at ninety beats per minute"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qamdt.music import MAX_TEMPO_BPM, MIN_TEMPO_BPM, parse_key


# Beats a minute that a word stands for. Those of captions agree with `data_prep.captions.tempo_words`.
TEMPO_WORDS = {
    "very slow": (48, 60),
    "largo": (46, 60),
    "grave": (46, 58),
    "lento": (50, 64),
    "adagio": (60, 74),
    "slow": (54, 75),
    "slowly": (54, 75),
    "downtempo": (70, 92),
    "andante": (78, 98),
    "mid-tempo": (78, 103),
    "midtempo": (78, 103),
    "medium tempo": (82, 103),
    "moderate tempo": (82, 103),
    "moderately paced": (78, 103),
    "moderato": (98, 110),
    "allegretto": (108, 120),
    "moderately fast": (106, 130),
    "upbeat": (108, 130),
    "lively": (108, 130),
    "allegro": (122, 150),
    "uptempo": (124, 150),
    "up-tempo": (124, 150),
    "fast": (134, 165),
    "quick": (134, 160),
    "vivace": (150, 168),
    "very fast": (155, 180),
    "presto": (166, 186),
}
# Beats a minute that a style is mostly played at.
STYLE_TEMPI = {
    "drum and bass": (166, 176),
    "hip hop": (80, 96),
    "lo-fi": (70, 88),
    "bossa nova": (116, 140),
    "ambient": (58, 80),
    "ballad": (60, 80),
    "lullaby": (60, 76),
    "hymn": (66, 88),
    "chorale": (62, 84),
    "reggae": (70, 92),
    "blues": (72, 116),
    "funk": (98, 116),
    "house": (118, 128),
    "disco": (114, 126),
    "techno": (124, 138),
    "trance": (132, 142),
    "rock": (108, 140),
    "metal": (132, 168),
    "punk": (150, 180),
    "swing": (124, 176),
    "jazz": (108, 168),
    "synthwave": (82, 116),
    "cinematic": (66, 120),
    "film score": (66, 120),
    "baroque": (70, 112),
    "latin": (92, 126),
    "salsa": (90, 105),
    "samba": (96, 108),
    "tango": (112, 130),
    "waltz": (90, 150),
    "march": (100, 120),
    "country": (92, 124),
    "folk": (88, 122),
    "pop": (92, 126),
}
_NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_NUMBER_WORDS |= {
    word: 10 * value
    for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_IN_WORDS = rf"(?:(?:a|and|hundred|{'|'.join(_NUMBER_WORDS)})\b[ -]*)+"
_UNIT = r"(?:bpm|beats?[ -](?:per|a)[ -]minute)"
_TEMPO_IN_DIGITS = re.compile(
    rf"(\d+(?:\.\d+)?)[ -]*{_UNIT}\b|(?:\b(?:bpm|tempo|quarter(?:[ -]note)?)|♩)(?: of|:)?\s*=?\s*(\d+(?:\.\d+)?)",
    re.IGNORECASE,
)
_TEMPO_IN_WORDS = re.compile(rf"\b({_IN_WORDS}){_UNIT}\b|\btempo(?: of|:)? ({_IN_WORDS})", re.IGNORECASE)
_TEMPO_RANGE = re.compile(rf"\b(\d+)\s*(?:-|–|to)\s*(\d+)[ -]*{_UNIT}\b", re.IGNORECASE)
# The mode that a scale's third makes of it: all that the network knows of one.
_MODES = {"dorian": "minor", "phrygian": "minor", "aeolian": "minor", "ionian": "major", "lydian": "major"}
_MODES |= {"mixolydian": "major", "major": "major", "maj": "major", "minor": "minor", "min": "minor"}
_KEY = re.compile(
    rf"\b([A-Ga-g])(?:[ -]?(#|♯|♭|[Ss]harp|[Ff]lat)|(b))?[ -]*({'|'.join(sorted(_MODES, reverse=True))})\b",
    re.IGNORECASE,
)
_SHORT_KEY = re.compile(r"\b(?:[Ii]n|[Kk]ey of|[Kk]ey:) ([A-G](?:#|b|♯|♭)?m?)(?![\w#])(?! (?:major|minor|flat|sharp))")
_METRES = {
    "3/4": re.compile(r"\b(?:3/4|three[- ]four|waltz|minuet|mazurka|triple (?:time|metre|meter))\b", re.IGNORECASE),
    "4/4": re.compile(r"\b(?:4/4|four[- ]four|common time|four[- ]on[- ]the[- ]floor)\b", re.IGNORECASE),
}


@dataclass(frozen=True, kw_only=True)
class PromptMusic:
    """What a prompt says; `None` where it says nothing.

    Args:
        tempo_bpm: Beats a minute, if the prompt has a number.
        tempo_range_bpm: From two numbers, or else from a word for a tempo, or else from a style.
        key: The key, such as "Bb minor".
        time_signature: `"3/4"` or `"4/4"`.
    """

    tempo_bpm: float | None
    tempo_range_bpm: tuple[float, float] | None
    key: str | None
    time_signature: str | None


def read_prompt(prompt: str) -> PromptMusic:
    """Reads a prompt; what it says twice counts as it is said first, and a number counts before a word."""
    return PromptMusic(
        tempo_bpm=None if (tempo_range := _read_range(prompt)) else _read_tempo(prompt),
        tempo_range_bpm=tempo_range or _first_named(prompt, TEMPO_WORDS) or _first_named(prompt, STYLE_TEMPI),
        key=_read_key(prompt),
        time_signature=next((name for name, pattern in _METRES.items() if pattern.search(prompt)), None),
    )


def _read_tempo(prompt: str) -> float | None:
    """Beats a minute in digits or in words; numbers that are no tempo for music are passed over."""
    found = [float(digits or other) for digits, other in _TEMPO_IN_DIGITS.findall(prompt)]
    found += [float(_read_number(words or other)) for words, other in _TEMPO_IN_WORDS.findall(prompt)]
    return next((bpm for bpm in found if MIN_TEMPO_BPM <= bpm <= MAX_TEMPO_BPM), None)


def _read_range(prompt: str) -> tuple[float, float] | None:
    """Two numbers with a dash or "to" between them, lower first, both of them tempi for music."""
    found = [(float(low), float(high)) for low, high in _TEMPO_RANGE.findall(prompt)]
    return next((pair for pair in found if MIN_TEMPO_BPM <= pair[0] < pair[1] <= MAX_TEMPO_BPM), None)


def _read_number(words: str) -> int:
    """Reads "one hundred and twenty", "a hundred", "ninety-six" or "one twenty"."""
    total = 0
    for word in re.split(r"[ -]+", words.lower().strip()):
        if word == "hundred":
            total = max(total, 1) * 100
        elif word in _NUMBER_WORDS:
            value = _NUMBER_WORDS[word]
            total = total * 100 + value if 0 < total < 10 and value >= 10 else total + value  # "one twenty"
    return total


def _read_key(prompt: str) -> str | None:
    for match in _KEY.finditer(prompt):
        letter, accidental, flat, mode = match.groups()
        if letter == "a" and not (accidental or flat) and not _ends_phrase(prompt, match.end()):
            continue  # "in a minor key" and "a major event" name none
        sign = {"sharp": "#", "♯": "#", "flat": "b", "♭": "b"}.get(
            (accidental or "").lower(), accidental or flat or ""
        )
        return f"{letter.upper()}{sign.lower()} {_MODES[mode.lower()]}"
    if match := _SHORT_KEY.search(prompt):
        name = match.group(1).replace("♯", "#").replace("♭", "b")
        return f"{name.removesuffix('m')} {parse_key(name)[1]}"
    return None


def _ends_phrase(prompt: str, position: int) -> bool:
    return re.match(r"\s*(?:$|[,.;:!?)]|(?:at|with|and|for|played|by)\b)", prompt[position:]) is not None


def _first_named(prompt: str, ranges: dict[str, tuple[float, float]]) -> tuple[float, float] | None:
    """The range of the name that a text has first, and of those in one place, of the longest."""
    text = prompt.lower()
    places = [
        (match.start(), -len(name), value)
        for name, value in ranges.items()
        if (match := re.search(rf"\b{re.escape(name)}(?:s|es)?\b", text))
    ]
    return min(places)[2] if places else None
