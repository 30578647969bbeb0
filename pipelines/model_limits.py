"""What a model cannot do, as its model card says: a prompt that asks for it gets a line of warning.

The front matter of the card, `README.md` in the model folder, may hold

    cannot:
      - phrases: [singing, lyrics]
        because: It has no voices.
      - phrases: [in the style of]
        before_name: true
        because: It knows no artists.

What the model itself knows is not written there: the letters that its tokenizer reads.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CARD_NAME = "README.md"
_LENGTH = re.compile(r"\b(\d+(?:\.\d+)?)[ -]?(seconds?|secs?|minutes?|mins?)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Something that a model cannot do.

    Args:
        phrases: Words or phrases by which a prompt asks for it, whatever their case.
        because: A sentence for who asked.
        before_name: Whether they count only in front of a name, which begins with a capital letter.
    """

    phrases: tuple[str, ...]
    because: str
    before_name: bool = False

    def find(self, prompt: str) -> str | None:
        """The phrase by which a prompt asks for it."""
        for phrase in self.phrases:
            for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", prompt, re.IGNORECASE):
                if not self.before_name or prompt[match.end() :].lstrip()[:1].isupper():
                    return phrase
        return None


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """What the card of a model says about what it cannot do.

    Args:
        limits: One by one.
        languages: What prompts may be written in, as codes such as "en"; unknown if empty.
    """

    limits: tuple[Limit, ...] = ()
    languages: tuple[str, ...] = ()

    def warn(
        self,
        prompt: str,
        audio_length_in_s: float,
        *,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> list[str]:
        """Lists what a prompt asks for in vain, a sentence each.

        Args:
            prompt: What to play.
            audio_length_in_s: How much of it.
            tokenizer: What reads the prompt; its letters are not looked at when `None`.
        """
        found = [(limit.find(prompt), limit.because) for limit in self.limits]
        warnings = [f"The prompt says {phrase!r}: {because}" for phrase, because in found if phrase is not None]
        warnings += _find_asked_length(prompt, audio_length_in_s)
        return warnings + self._find_unread(prompt, tokenizer)

    def _find_unread(self, prompt: str, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
        words = re.findall(r"\w+", prompt)
        unread = [word for word in words if tokenizer is not None and _is_unknown(word, tokenizer)]
        if unread:
            return [f"The model cannot read {', '.join(map(repr, unread[:3]))}, which has no effect."]
        if self.languages == ("en",):
            foreign = [word for word in words if not all(map(_is_latin, word))]
            if foreign:
                return [f"The model reads English: {', '.join(map(repr, foreign[:3]))} may have no effect."]
        return []


def read_limits(folder: Path) -> ModelLimits:
    """Reads what the card in a model folder says; nothing where there is no card, or none that says it."""
    facts = read_front_matter(folder / CARD_NAME)
    entries = facts.get("cannot", [])
    try:
        limits = tuple(Limit(**entry | {"phrases": tuple(map(str, entry["phrases"]))}) for entry in entries)
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"`cannot` in {str(folder / 'README.md')!r} must be a list of objects with `phrases`, `because` and "
            f"perhaps `before_name`, got {entries!r}."
        ) from error
    languages = facts.get("language") or []
    return ModelLimits(limits=limits, languages=(languages,) if isinstance(languages, str) else tuple(languages))


def read_front_matter(card: Path) -> dict[str, Any]:
    """The YAML between the first two lines of dashes of a Markdown file; empty where there is none."""
    if not card.is_file():
        return {}
    match = re.match(r"---\n(.*?)\n---\n", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        facts = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        raise ValueError(f"{str(card)!r} must begin with YAML between lines of dashes: {error}") from error
    return facts if isinstance(facts, dict) else {}


def _find_asked_length(prompt: str, audio_length_in_s: float) -> Sequence[str]:
    for number, unit in _LENGTH.findall(prompt):
        seconds = float(number) * (60 if unit.lower().startswith("m") else 1)
        if abs(seconds - audio_length_in_s) > 0.5:
            return [f"The prompt says {number} {unit}, which sets no length: {audio_length_in_s:g} s are made."]
    return []


def _is_unknown(word: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return (
        tokenizer.unk_token_id is not None
        and tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids
    )


def _is_latin(letter: str) -> bool:
    return not letter.isalpha() or unicodedata.name(letter, "").startswith("LATIN")
