"""Captions that are true by construction: several wordings of what is known about a piece."""

import numpy as np

from data_prep.composer.composition import Piece
from data_prep.composer.instruments import INSTRUMENTS


FAST_BPM, MODERATE_BPM, SLOW_BPM = 132, 104, 76
SOFT_VELOCITY = 75  # below it a piece is not called upbeat, however fast it is
# Style names that stand alone; the others are followed by "piece", "track" or "music".
NOUNS = (
    "song",
    "tune",
    "piece",
    "track",
    "groove",
    "jam",
    "soundscape",
    "ballad",
    "waltz",
    "march",
    "score",
    "chorale",
)
NOUNS += ("hymn", "shuffle", "beat", "music", "blues", "jazz")

SECTIONS = ("choir", "strings", "pizzicato strings", "brass section")  # many players, so never "solo"


def tempo_words(piece: Piece) -> tuple[str, ...]:
    """Words for a tempo; each word belongs to one range of tempi only."""
    if piece.tempo_bpm < SLOW_BPM:
        return ("slow",)
    if piece.tempo_bpm < MODERATE_BPM:
        return ("mid-tempo", "moderately paced")
    if piece.tempo_bpm < FAST_BPM:
        return ("moderately fast",) if piece.mood.velocity < SOFT_VELOCITY else ("upbeat", "lively")
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

    def music(self) -> str:
        """The style as a noun: "waltz", "techno track", "baroque music"."""
        style = self.style()
        return style if style.split()[-1] in NOUNS else f"{style} {self.choose(('piece', 'track', 'music'))}"

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
            is_one_player = self.piece.instruments[0] not in SECTIONS
            return f"solo {names[0]}" if is_one_player and self.happens(0.7) else names[0]
        return _join(names)

    def adjectives(self) -> str:
        """The mood, the tempo in a word, both or neither."""
        words = [self.mood()] if self.happens(0.7) else []
        if self.happens(0.4):
            words.insert(0, self.choose(tempo_words(self.piece)))
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
        head = _words(self.adjectives(), self.choose((self.style(), self.music())))
        return f"{head} with {self.players()}{self.facts(0.6, 0.9)}"

    def sentence(self) -> str:
        verb = self.choose(("played by", "performed by", "featuring", "for"))
        head = _words(self.mood(), self.music())
        opening = head if head.endswith("music") else f"{_article(head)} {head}"
        sentence = f"{opening}{self.facts(0.5, 0.5)}, {verb} {self.players()}."
        return sentence[0].upper() + sentence[1:]

    def without_numbers(self) -> str:
        if self.happens(0.5):
            return f"{self.players()} playing {_words(self.adjectives(), self.music())}"
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


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)


def _article(phrase: str) -> str:
    return "an" if phrase[0].lower() in "aeiou" else "a"
