"""What the stages of caption refinement hand to each other and write down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from data_prep.refine.fusion_prompt import FUSION_SCHEMA, FUSION_TASK, write_messages


# Sources of candidates; a model's own name is the source of what it writes.
ORIGINAL, MEASURED, TAGS = "original", "measured", "tags"
# Reasons for which a candidate is dropped.
NOT_A_CAPTION, BELOW_THRESHOLD, NEAR_DUPLICATE = "not a caption", "below the threshold", "near-duplicate"


@dataclass(frozen=True)
class Candidate:
    """A sentence that may describe a clip.

    Args:
        text: The sentence.
        source: Who wrote it: "original", "measured", "tags", or the name of a model.
    """

    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class KeptCandidate:
    """A candidate that agrees with the audio.

    Args:
        text: The sentence.
        source: Who wrote it.
        similarity: CLAP similarity with the audio, -1 to 1.
    """

    text: str
    source: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class DroppedCandidate:
    """A candidate that is not used, and why.

    Args:
        text: The sentence, shortened if it is very long.
        source: Who wrote it.
        similarity: CLAP similarity with the audio; `None` when the sentence was dropped unheard.
        reason: Kind of the reason: "not a caption", "below the threshold" or "near-duplicate".
        detail: The reason in full, with its numbers.
    """

    text: str
    source: str
    similarity: float | None
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What stage 2 says of the candidates of one clip.

    Args:
        kept: The survivors: originals first, then the others, the most similar first in each group.
        dropped: The others, in the order in which they were given.
    """

    kept: tuple[KeptCandidate, ...]
    dropped: tuple[DroppedCandidate, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Alignment:
        """Builds an alignment from what `asdict` made of it."""
        return cls(
            kept=tuple(KeptCandidate(**candidate) for candidate in values["kept"]),
            dropped=tuple(DroppedCandidate(**candidate) for candidate in values["dropped"]),
        )


@dataclass(frozen=True, kw_only=True)
class FusionRequest:
    """What a fuser is asked: everything that the fused caption may say, and nothing else.

    Args:
        texts: The surviving captions, originals first.
        tags: The tags that may be used, by name, as words.
        fallback: The caption that stands when the fused one fails a check.
        num_paraphrases: How many other wordings to ask for.
        has_survivors: Whether any candidate reached the threshold; if not, `fallback` is the least bad one.
        num_originals: How many of the texts are the clip's own captions, which say the same in other words.
        task: What a language model is told to do with them.
    """

    texts: tuple[str, ...]
    tags: Mapping[str, str]
    fallback: str
    num_paraphrases: int
    has_survivors: bool
    num_originals: int = 1
    task: str = FUSION_TASK

    @property
    def messages(self) -> list[dict[str, str]]:
        """The request as chat messages, with all texts of others quoted as JSON."""
        return write_messages(self.texts, self.tags, self.num_paraphrases, self.task)

    @property
    def json_schema(self) -> dict[str, Any]:
        """The schema of the answer."""
        return FUSION_SCHEMA


class Fuser(Protocol):
    """Anything that answers a request with `{"caption": str, "paraphrases": [str, …]}`."""

    def __call__(self, request: FusionRequest) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """The refined caption of one clip.

    Args:
        caption: The fused caption, or the one that took its place.
        paraphrases: Other wordings that passed the same checks.
        failed_checks: What was wrong with the answer of the fuser, a sentence for each; empty when nothing was.
        fell_back: Whether `caption` is not the fuser's.
        similarity: CLAP similarity of `caption` with the audio, once `check_similarity` has measured it.
    """

    caption: str
    paraphrases: tuple[str, ...] = ()
    failed_checks: tuple[str, ...] = ()
    fell_back: bool = False
    similarity: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fusion:
        """Builds a fusion from what `asdict` made of it."""
        texts = {name: tuple(values[name]) for name in ("paraphrases", "failed_checks")}
        return cls(**{**values, **texts})


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """All that happened to one clip; the row of a result file and of the report.

    Args:
        id: Name of the clip.
        original_captions: The captions it came with.
        alignment: Stage 2.
        fusion: Stage 3.
    """

    id: str
    original_captions: tuple[str, ...]
    alignment: Alignment
    fusion: Fusion

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Refinement:
        """Builds a refinement from one decoded line."""
        return cls(
            id=values["id"],
            original_captions=tuple(values["original_captions"]),
            alignment=Alignment.from_dict(values["alignment"]),
            fusion=Fusion.from_dict(values["fusion"]),
        )
