"""The three stages of caption refinement, as functions of one clip that touch no file and no network.

    candidates = generate_candidates(record, waveform, sampling_rate, captioners)
    alignment = align(record, candidates, audio_embedding, clap, thresholds)
    fusion = fuse(record, alignment)
    fusion = check_similarity(fusion, alignment, audio_embedding, clap, thresholds)

`fuse` is complete for any fuser that answers at once, such as the rules of `fuse.py`. A language model that answers
later takes the same way in two steps: `build_fusion_request` before the call, `accept_fusion` with its answer. A
caption is data in all of this: nothing that it says is acted upon.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data_prep.refine.clean import clean_text, describe_tags, why_not_a_caption
from data_prep.refine.fact_check import find_unsupported
from data_prep.refine.fuse import FUSION_SCHEMA, fuse_by_rules, write_messages
from qamdt.manifest import Record


if TYPE_CHECKING:
    from data_prep.refine.align import Thresholds
    from data_prep.refine.clap import Clap

# Changes whenever the same input may be refined differently than before; part of the fingerprint of stored results.
STAGES_VERSION = 1
ORIGINAL = "original"


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


@dataclass(frozen=True, kw_only=True)
class FusionRequest:
    """What a fuser is asked: everything that the fused caption may say, and nothing else.

    Args:
        texts: The surviving captions, originals first.
        tags: The tags that may be used, by name, as words.
        fallback: The caption that stands when the fused one fails a check.
        num_paraphrases: How many other wordings to ask for.
        has_survivors: Whether any candidate reached the threshold; if not, `fallback` is the least bad one.
    """

    texts: tuple[str, ...]
    tags: Mapping[str, str]
    fallback: str
    num_paraphrases: int
    has_survivors: bool

    @property
    def messages(self) -> list[dict[str, str]]:
        """The request as chat messages, with all texts of others quoted as JSON."""
        return write_messages(self.texts, self.tags, self.num_paraphrases)

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


# A captioner is given the record and its waveform with the sampling rate, and returns candidates.
Captioner = Callable[[Record, np.ndarray, int], Sequence[Candidate]]


def generate_candidates(
    record: Record, waveform: np.ndarray, sampling_rate: int, captioners: Sequence[Captioner]
) -> list[Candidate]:
    """Stage 1: lists what may describe a clip, the captions it came with first.

    Args:
        record: The clip.
        waveform: Its mono samples `(samples,)`.
        sampling_rate: Their rate in Hz.
        captioners: What else to ask.
    """
    candidates = [Candidate(text, ORIGINAL) for text in record.captions]
    for captioner in captioners:
        candidates += captioner(record, waveform, sampling_rate)
    return candidates


def align(
    record: Record,
    candidates: Sequence[Candidate],
    audio_embedding: np.ndarray,
    clap: Clap,
    thresholds: Thresholds,
) -> Alignment:
    """Stage 2: keeps the candidates that agree with the audio.

    Args:
        record: The clip, for error messages.
        candidates: What stage 1 found.
        audio_embedding: CLAP embedding of the clip's audio `(E,)`, of unit length.
        clap: Embeds the candidates.
        thresholds: How similar a candidate must be.
    """
    raise NotImplementedError


def build_fusion_request(record: Record, alignment: Alignment, num_paraphrases: int = 2) -> FusionRequest:
    """Stage 3, before the fuser: collects what the fused caption may say.

    The tags take part only where a caption made from them survived stage 2, or none was made.

    Args:
        record: The clip.
        alignment: What stage 2 says of its candidates.
        num_paraphrases: How many other wordings to ask for.
    """
    raise NotImplementedError


def accept_fusion(request: FusionRequest, response: str | Mapping[str, Any]) -> Fusion:
    """Stage 3, after the fuser: checks its answer against the request and falls back where it is wrong.

    Args:
        request: What was asked.
        response: The answer, as JSON text or already decoded.

    Raises:
        ValueError: The answer is not JSON of the schema that was asked for; asking again may help.
    """
    raise NotImplementedError


def fuse(record: Record, alignment: Alignment, fuser: Fuser = fuse_by_rules, num_paraphrases: int = 2) -> Fusion:
    """Stage 3 with a fuser that answers at once.

    Args:
        record: The clip.
        alignment: What stage 2 says of its candidates.
        fuser: Who writes the caption.
        num_paraphrases: How many other wordings to ask for; fewer come back when some fail a check.
    """
    request = build_fusion_request(record, alignment, num_paraphrases)
    if not request.has_survivors:
        return Fusion(caption=request.fallback, fell_back=True, failed_checks=("no candidate agrees with the audio",))
    return accept_fusion(request, fuser(request))


def check_similarity(
    fusion: Fusion, alignment: Alignment, audio_embedding: np.ndarray, clap: Clap, thresholds: Thresholds
) -> Fusion:
    """Measures how similar the fused caption is to the audio, and falls back if it lost too much.

    Args:
        fusion: What stage 3 wrote.
        alignment: What stage 2 said; the best kept candidate takes the place of a caption that lost too much.
        audio_embedding: CLAP embedding of the clip's audio `(E,)`, of unit length.
        clap: Embeds the caption.
        thresholds: How much the caption may lose.
    """
    raise NotImplementedError


def apply_refinement(record: Record, alignment: Alignment, fusion: Fusion) -> Record:
    """Returns the record with its refined captions and where they come from; the originals stay beside them."""
    raise NotImplementedError


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
        raise NotImplementedError
