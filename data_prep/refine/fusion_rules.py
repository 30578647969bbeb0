"""The fuser that works by rules, without a language model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_prep.composer.instruments import INSTRUMENTS
from data_prep.refine.clean import join_words
from data_prep.refine.fact_check import find_keys, find_tempi, names_instrument, plain, share_of_known_words
from data_prep.refine.outcomes import FusionRequest


NEW_WORDS = 0.5  # a further caption is appended when fewer of its words than this were said before
MAX_FUSED_CHARACTERS = 500
_SOUND = re.compile(r"\bwith (an? [a-z, ]+ sound)\b")


def fuse_by_rules(request: FusionRequest) -> dict[str, Any]:
    """Writes a caption without a language model: the best text, then what the others and the tags know besides.

    Args:
        request: The texts and tags.
    """
    head = request.texts[0]
    details = _details(head, request.texts[1:], request.tags)
    caption = _sentence(head)
    if details:
        caption += f" It {join_words([f'{verb} {what}' for verb, what in details])}."
    for text in request.texts[max(request.num_originals, 1) :]:
        is_new = share_of_known_words(text, [caption]) < NEW_WORDS and not _contradicts(text, caption)
        if is_new and len(caption) + len(text) < MAX_FUSED_CHARACTERS:
            caption += f" {_sentence(text)}"
    paraphrases = [*_other_wordings(head, details), *request.texts[: request.num_originals]]
    others = [text for text in dict.fromkeys(paraphrases) if plain(text).rstrip(".") != plain(caption).rstrip(".")]
    return {"caption": caption, "paraphrases": others[: request.num_paraphrases]}


def _details(head: str, texts: Sequence[str], tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Lists what `head` does not say yet, as (verb, what): the kind with key and tempo, who plays, the sound."""
    kind = ""
    if "style" in tags and not _shares_a_word(tags["style"], head):
        kind = f"{tags['mood']} {tags['style']} music" if "mood" in tags else f"{tags['style']} music"
    facts = _key_and_tempo(head, [*texts, *(tags[name] for name in ("key", "tempo") if name in tags)])
    details = [("is", " ".join(filter(None, (kind, facts))))] if kind or facts else []
    players = re.split(r", | and ", tags["instruments"]) if "instruments" in tags else []
    if players := [name for name in players if not _says(head, name)]:
        details.append(("features", join_words(players)))
    if sound := next((match.group(1) for text in texts if (match := _SOUND.search(text))), None):
        details.append(("has", sound))
    return details


def _says(text: str, player: str) -> bool:
    """Whether a text names an instrument, or calls it what the composer of this project may call it."""
    names = INSTRUMENTS[player].names if player in INSTRUMENTS else (player,)
    return any(names_instrument(plain(text), plain(name)) for name in names)


def _key_and_tempo(head: str, texts: Iterable[str]) -> str:
    """The first key and the first tempo that `texts` name, where `head` names none: "in A minor at 120 bpm"."""
    texts = list(texts)
    key = None if find_keys(head) else next((name for text in texts for name in find_keys(text).values()), None)
    bpm = None if find_tempi(head) else next((bpm for text in texts for bpm in find_tempi(text)), None)
    words = [f"in {key}"] if key else []
    return " ".join(words + ([f"at {bpm:g} bpm"] if bpm else []))


def _other_wordings(head: str, details: list[tuple[str, str]]) -> list[str]:
    """Says head and details in one phrase, and again with the details first."""
    if not details:
        return []
    prepositions = {"features": "with ", "has": "with "}
    facts = [prepositions.get(verb, "") + what for verb, what in details]
    head = head.rstrip(".")
    return [", ".join([head, *facts]), _sentence(f"{', '.join(facts)}: {head}")]


def _contradicts(text: str, caption: str) -> bool:
    """Whether a text names a key or tempo where the caption names another."""
    keys, tempi = find_keys(text).keys(), set(find_tempi(text))
    known_keys, known_tempi = find_keys(caption).keys(), set(find_tempi(caption))
    return bool(keys - known_keys and known_keys) or bool(tempi - known_tempi and known_tempi)


def _shares_a_word(words: str, text: str) -> bool:
    return bool(set(plain(words).split()) & set(re.findall(r"\w+", plain(text))))


def _sentence(text: str) -> str:
    """Begins with a capital letter and ends with a full stop."""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
