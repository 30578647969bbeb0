"""Captions and tags of strangers as plain data: one line of text each, nothing that addresses a machine.

What is found here is dropped with a reason before any model reads it. It is the first of several guards: captions are
quoted when they are sent to a language model, its answer has a schema, and every fact in it is checked.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any


MAX_CAPTION_CHARACTERS = 1000
MAX_TAG_CHARACTERS = 60
MAX_TAG_WORDS = 12  # words of one tag that are used, such as instruments

# What data sets call the tags that a caption may use; all others (splits, ids, seeds, …) say nothing of the music.
_TAG_NAMES = {
    "style": ("style", "styles", "genre", "genres"),
    "mood": ("mood", "moods"),
    "instruments": ("instruments", "instrument"),
    "key": ("key",),
    "tempo": ("tempo_bpm", "bpm"),
}
SLOWEST_BPM, FASTEST_BPM = 20, 400

_NOT_A_CAPTION = (
    ("a web address", r"https?://|www\.|\S@\S+\.\w"),
    ("markup or code", r"<[/|!]?\s*[a-z_]+[^<>]{0,40}>|```|\[/?inst\]|[{}]"),
    ("a turn of a conversation", r"\b(?:system|assistant|user|human|developer)\s*:"),
    (
        "an instruction to a machine",
        r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,60}\b(?:previous|prior|above|earlier|prompts?|rules|all)\b"
        r"|\binstructions?\b|\bsystem (?:prompt|message)\b|\bas an ai\b|\blanguage model\b"
        r"|\b(?:reply|respond|answer|output|print|write)\b.{0,20}\b(?:only|with|exactly|json)\b",
    ),
)
_NOT_A_CAPTION = tuple((name, re.compile(pattern, re.IGNORECASE | re.DOTALL)) for name, pattern in _NOT_A_CAPTION)


def clean_text(text: str) -> str:
    """Returns a text as one line: control and invisible characters out, white space single, lone surrogates visible."""
    text = printable(text)
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFC", text).split())


def printable(text: str) -> str:
    """Returns a text that UTF-8 can hold: lone surrogates, which it cannot, are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def why_not_a_caption(text: str) -> str | None:
    """Says why a text cannot be a caption of music; `None` when it can.

    Args:
        text: The text as it was given; very long ones are judged by their length alone.
    """
    if len(text) > MAX_CAPTION_CHARACTERS:
        return f"{len(text)} characters, more than {MAX_CAPTION_CHARACTERS}"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "characters that are not valid Unicode"
    cleaned = clean_text(text)
    if not re.search(r"[^\W\d_]{2}", cleaned):
        return "no word in it"
    return next((f"it holds {name}" for name, pattern in _NOT_A_CAPTION if pattern.search(cleaned)), None)


def describe_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Returns the tags that a caption may use, in words: `{"style": "waltz", "tempo": "120 bpm"}`.

    Values that are no short, plain words are left out, like tags of other names.

    Args:
        tags: The tags of a record.
    """
    described = {}
    for name, spellings in _TAG_NAMES.items():
        values = [value for spelling in spellings for value in _as_list(tags.get(spelling))]
        words = _tempo_words(values) if name == "tempo" else _plain_words(values)
        if words:
            described[name] = join_words(words)
    return described


def join_words(words: list[str]) -> str:
    """Joins words as in "flute, harp and drums"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _plain_words(values: list[Any]) -> list[str]:
    texts = [value for value in values if isinstance(value, str) and len(value) <= MAX_TAG_CHARACTERS]
    words = [clean_text(text) for text in texts if why_not_a_caption(text) is None]
    return list(dict.fromkeys(words))[:MAX_TAG_WORDS]


def _tempo_words(values: list[Any]) -> list[str]:
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return [f"{round(number)} bpm" for number in numbers if SLOWEST_BPM <= number <= FASTEST_BPM][:1]
