"""Checks that a caption says nothing that its sources do not say: no instrument, key, tempo or number of its own.

The check knows no music beyond the lists of `vocabulary.py`. It errs on the side of refusing: a caption that is
refused wrongly costs a paraphrase, one that is accepted wrongly teaches a model something false.
"""

import re
from collections.abc import Iterable, Sequence

from data_prep.refine.vocabulary import (
    GROUP_SIZES,
    INSTRUMENT_WORDS,
    MODES,
    NUMBER_WORDS,
    SAME_INSTRUMENTS,
    TEMPO_WORDS,
)


# Of the words of a caption that carry meaning, how many its sources must have; an apology shares none.
MIN_SHARED_WORDS = 1 / 3

_KEY = r"\b([{letters}])(?:[ -]?(#|♯|b|♭|sharp|flat))?[ -]+(major|minor)\b"
_KEY_IN_CAPTION = re.compile(_KEY.format(letters="A-G"))  # "in a minor key" names none
_KEY_IN_SOURCE = re.compile(_KEY.format(letters="A-Ga-g"))
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "sharp": 1, "b": -1, "♭": -1, "flat": -1}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_BPM = re.compile(r"(\d+(?:\.\d+)?) ?(?:bpm|beats (?:per|a) minute)", re.IGNORECASE)
_TEMPO = re.compile(r"\btempo\D{1,8}(\d+(?:\.\d+)?)", re.IGNORECASE)  # "tempo: 120", in sources only
_PLURAL = "(?:s|es)?"
_INSTRUMENT = re.compile(rf"\b({'|'.join(INSTRUMENT_WORDS)}){_PLURAL}\b")
_FILLER = frozenset(
    "about above across also among around based been being both built carried characterized creating each evoking "
    "featuring feeling from full gives giving have having into more music musical over performed piece played playing "
    "recording rich some song sound sounds such than that their them then there these this those through throughout "
    "together tone track tune very which while with within".split()
)


def find_unsupported(caption: str, sources: Sequence[str]) -> list[str]:
    """Lists what a caption says and none of its sources does, a sentence for each; empty when all is well.

    Args:
        caption: The caption to check.
        sources: The texts that it must come from.
    """
    unsupported = find_unsupported_facts(caption, sources)
    if (share := share_of_known_words(caption, sources)) < MIN_SHARED_WORDS:
        unsupported.append(f"{1 - share:.0%} of the words")
    return [f"{fact} comes from no source" for fact in unsupported]


def find_unsupported_facts(caption: str, sources: Sequence[str]) -> list[str]:
    """Lists the instruments, keys, modes, tempi and numbers of a caption that none of its sources has."""
    source = plain(" ; ".join(sources))
    unsupported = [
        f"the instrument {name!r}" for name in find_instruments(caption) if not names_instrument(source, name)
    ]
    source_keys = {key for text in sources for key in _find_keys(text, _KEY_IN_SOURCE)}
    unsupported += [f"the key {name!r}" for key, name in find_keys(caption).items() if key not in source_keys]
    unsupported += [f"the mode {mode!r}" for mode in MODES if _has(plain(caption), mode) and not _has(source, mode)]
    unsupported += [f"the tempo {word!r}" for word in _find_tempo_words(caption) if not _is_tempo(word, sources)]
    source_tempi = {bpm for text in sources for bpm in [*find_tempi(text), *map(float, _TEMPO.findall(text))]}
    unsupported += [f"the tempo '{bpm:g} bpm'" for bpm in find_tempi(caption) if bpm not in source_tempi]
    source_numbers = {number for text in sources for number in _find_numbers(text).values()}
    unsupported += [
        f"the number {name!r}" for name, number in _find_numbers(caption).items() if number not in source_numbers
    ]
    unsupported += [
        f"the size {size!r}" for size in GROUP_SIZES if _has(plain(caption), size) and not _has(source, size)
    ]
    return unsupported


def find_instruments(text: str) -> list[str]:
    """Lists the instruments and voices that a text names, in the singular, each once."""
    return list(dict.fromkeys(match.group(1) for match in _INSTRUMENT.finditer(plain(text))))


def names_instrument(plain_text: str, name: str) -> bool:
    """Whether a text made `plain` names an instrument, by this name or another for the same."""
    names = {name}.union(*(group for group in SAME_INSTRUMENTS if {name, name.removesuffix("s")} & set(group)))
    return any(_has(plain_text, other) for other in names)


def find_keys(text: str) -> dict[tuple[int, str], str]:
    """Finds the keys that a text names: `{(10, "major"): "Bb major"}`, the tonic as semitones above C."""
    return _find_keys(text, _KEY_IN_CAPTION)


def find_tempi(text: str) -> list[float]:
    """Lists the tempi in beats a minute that a text names."""
    return [float(match.group(1)) for match in _BPM.finditer(text)]


def share_of_known_words(caption: str, sources: Sequence[str]) -> float:
    """Returns how many of the words of a caption that carry meaning occur in its sources, 0 to 1."""
    words = {_stem(word) for word in _content_words(caption)}
    known = {_stem(word) for source in sources for word in _content_words(source)}
    return len(words & known) / len(words) if words else 1.0


def plain(text: str) -> str:
    """Returns a text in lower case with hyphens as spaces, in which words can be looked up."""
    return " ".join(text.lower().replace("-", " ").split())


def _has(plain_text: str, phrase: str) -> bool:
    return re.search(rf"\b{re.escape(phrase)}{_PLURAL}\b", plain_text) is not None


def _find_keys(text: str, pattern: re.Pattern) -> dict[tuple[int, str], str]:
    keys = {}
    for match in pattern.finditer(text):
        letter, accidental, mode = match.groups()
        tonic = (_SEMITONES[letter.upper()] + _ACCIDENTALS[accidental or ""]) % 12
        keys[tonic, mode] = match.group(0)
    return keys


def _find_numbers(text: str) -> dict[str, float]:
    """Finds numbers in digits and in words."""
    numbers = {match.group(0): float(match.group(0)) for match in _NUMBER.finditer(text)}
    words = re.findall(r"[a-z]+", text.lower())
    return numbers | {word: float(NUMBER_WORDS[word]) for word in words if word in NUMBER_WORDS}


def _find_tempo_words(text: str) -> list[str]:
    return [word for _, words in TEMPO_WORDS for word in words if _has(plain(text), word)]


def _is_tempo(word: str, sources: Iterable[str]) -> bool:
    """Whether a source has a word of the same tempo, or a number that bears it out."""
    (low, high), words = next(group for group in TEMPO_WORDS if word in group[1])
    return any(
        any(_has(plain(source), other) for other in words) or any(low <= bpm <= high for bpm in find_tempi(source))
        for source in sources
    )


def _content_words(text: str) -> list[str]:
    return [word for word in re.findall(r"[^\W\d_]{4,}", text.lower()) if word not in _FILLER]


def _stem(word: str) -> str:
    """Cuts a word so that its forms meet: "bright" and "brightly", "strings" and "string"."""
    return word[:6].removesuffix("s")
