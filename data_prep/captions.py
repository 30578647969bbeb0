"""Captions that are true by construction: several wordings of what is known about a piece."""

import numpy as np

from data_prep.composition import Piece
from data_prep.instruments import INSTRUMENTS


FAST_BPM, MODERATE_BPM, SLOW_BPM = 132, 100, 76


def tempo_words(tempo_bpm: int) -> tuple[str, ...]:
    """Words for a tempo; each word belongs to one range of tempi only."""
    if tempo_bpm < SLOW_BPM:
        return ("slow",)
    if tempo_bpm < MODERATE_BPM:
        return ("moderate", "unhurried")
    if tempo_bpm < FAST_BPM:
        return ("mid-tempo", "upbeat")
    return ("fast", "quick")


def write_captions(piece: Piece, generator: np.random.Generator) -> list[str]:
    """Words a piece in four or five ways, from two words to a full sentence.

    Args:
        piece: The piece.
        generator: Source of the choice of words.
    """
    phrases = _Phrases(piece, generator)
    captions = [phrases.full(), phrases.sentence(), phrases.without_numbers(), phrases.tag_list(), phrases.short()]
    return list(dict.fromkeys(captions))


class _Phrases:
    """The building blocks of the captions of one piece; every call chooses its words anew."""

    def __init__(self, piece: Piece, generator: np.random.Generator):
        self.piece = piece
        self.generator = generator

    def choose(self, options):
        return options[int(self.generator.integers(len(options)))]

    def happens(self, chance: float) -> bool:
        return bool(self.generator.random() < chance)

    def mood(self) -> str:
        return self.choose(self.piece.mood.names)

    def style(self) -> str:
        return self.choose(self.piece.style.names)

    def tempo(self) -> str:
        bpm = self.piece.tempo_bpm
        return self.choose((f"{bpm} bpm", f"{bpm} BPM", f"{bpm} beats per minute"))

    def key(self) -> str:
        """The key in letters, sometimes with the accidental spelled out."""
        name = self.piece.key.name
        return name.replace("b ", " flat ").replace("# ", " sharp ") if self.happens(0.5) else name

    def instruments(self) -> list[str]:
        return [self.choose(INSTRUMENTS[name].names) for name in self.piece.instruments]

    def players(self) -> str:
        """Who plays: "solo flute", "string quartet", "flute and harp", "piano, electric bass and drums"."""
        if self.piece.ensemble_name and self.happens(0.7):
            return self.piece.ensemble_name
        names = list(dict.fromkeys(self.instruments()))
        if len(self.piece.parts) == 1 and not self.piece.parts[0].instrument.is_drum_kit:
            return f"solo {names[0]}" if self.happens(0.7) else names[0]
        return _join(names)

    def adjectives(self) -> str:
        """The mood, the tempo in a word, both or neither."""
        words = [self.mood()] if self.happens(0.7) else []
        if self.happens(0.4):
            words.insert(0, self.choose(tempo_words(self.piece.tempo_bpm)))
        return " ".join(words)

    def facts(self, key_chance: float, tempo_chance: float) -> str:
        """The key and the tempo, each with a chance of being left out."""
        facts = ""
        if self.piece.key is not None and self.happens(key_chance):
            facts += f" in {self.key()}"
        if self.happens(tempo_chance):
            facts += f" at {self.tempo()}"
        return facts

    def full(self) -> str:
        head = _words(self.adjectives(), self.style())
        return f"{head} with {self.players()}{self.facts(0.6, 0.9)}"

    def sentence(self) -> str:
        verb = self.choose(("played by", "performed by", "featuring", "for"))
        players = self.players()
        style = self.style()
        noun = "" if style.split()[-1] in _NOUNS else self.choose((" piece", " track"))
        head = _words(self.mood(), style) + noun
        sentence = f"{_article(head)} {head}{self.facts(0.5, 0.5)}, {verb} {players}."
        return sentence[0].upper() + sentence[1:]

    def without_numbers(self) -> str:
        if self.happens(0.5):
            return _words(self.adjectives(), self.players(), "playing", self.style())
        return f"{_words(self.adjectives(), self.style())}, {self.players()}"

    def tag_list(self) -> str:
        tags = [self.style(), *dict.fromkeys(self.instruments()), self.mood(), self.tempo()]
        if self.piece.key is not None and self.happens(0.5):
            tags.append(self.key())
        return ", ".join(tags)

    def short(self) -> str:
        kind = self.choose(("players", "style", "mood style", "style tempo", "players tempo", "players key"))
        if kind == "players":
            return self.players()
        if kind == "style":
            return self.style()
        if kind == "mood style":
            return _words(self.mood(), self.style())
        if kind == "style tempo":
            return f"{self.style()} {self.tempo()}"
        if kind == "players key" and self.piece.key is not None:
            return f"{self.players()} in {self.key()}"
        return f"{self.players()} at {self.tempo()}"


_NOUNS = (
    "song", "tune", "piece", "track", "groove", "jam", "soundscape", "invention", "ballad", "waltz", "march", "score",
    "chorale", "hymn", "shuffle", "beat", "techno", "house",
)


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)


def _article(phrase: str) -> str:
    return "an" if phrase[0].lower() in "aeiou" or phrase.startswith("80s") or phrase.startswith("808") else "a"
