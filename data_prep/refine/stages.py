"""The three stages of caption refinement, as functions of one clip that touch no file and no network.

    candidates = generate_candidates(record, waveform, sampling_rate, captioners)
    alignment = align(record, candidates, audio_embedding, clap, thresholds)
    fusion = fuse(record, alignment)
    fusion = check_similarity(fusion, alignment, audio_embedding, clap, thresholds)

`fuse` is complete for any fuser that answers at once, such as `fuse_by_rules`. A language model that answers
later takes the same way in two steps: `build_fusion_request` before the call, `accept_fusion` with its answer. A
caption is data in all of this: nothing that it says is acted upon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.refine.clean import clean_text, describe_tags, printable, why_not_a_caption
from data_prep.refine.fact_check import find_unsupported, find_unsupported_facts
from data_prep.refine.fusion_prompt import read_response
from data_prep.refine.fusion_rules import fuse_by_rules
from data_prep.refine.outcomes import (
    BELOW_THRESHOLD,
    MEASURED,
    NEAR_DUPLICATE,
    NOT_A_CAPTION,
    ORIGINAL,
    TAGS,
    Alignment,
    Candidate,
    DroppedCandidate,
    Fuser,
    Fusion,
    FusionRequest,
    KeptCandidate,
    Refinement,
)
from qamdt.manifest import Record


if TYPE_CHECKING:
    from data_prep.refine.thresholds import Thresholds
    from whisq.clap import Clap

MAX_DROPPED_CHARACTERS = 200
NO_SURVIVORS = "no candidate agrees with the audio"


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

    What was measured is kept however similar it is: CLAP hears timbre and style, and tells right keys and tempi from
    wrong ones hardly better than chance.

    Args:
        record: The clip, for error messages.
        candidates: What stage 1 found.
        audio_embedding: CLAP embedding of the clip's audio `(E,)`, of unit length.
        clap: Embeds the candidates.
        thresholds: How similar a candidate must be.
    """
    if audio_embedding.ndim != 1 or not np.isfinite(audio_embedding).all():
        raise ValueError(
            f"`audio_embedding` of clip {record.id!r} must be finite and of shape (E,), got {audio_embedding.shape}."
        )
    reasons = [why_not_a_caption(candidate.text) for candidate in candidates]
    readable = [candidate for candidate, reason in zip(candidates, reasons, strict=True) if reason is None]
    dropped = [
        _drop(candidate, None, NOT_A_CAPTION, reason)
        for candidate, reason in zip(candidates, reasons, strict=True)
        if reason is not None
    ]
    if not readable:
        return Alignment(kept=(), dropped=tuple(dropped))

    texts = [clean_text(candidate.text) for candidate in readable]
    text_embeddings = clap.embed_text(texts)  # (candidates, E)
    similarities = (text_embeddings @ audio_embedding).tolist()
    order = sorted(range(len(readable)), key=lambda i: (readable[i].source != ORIGINAL, -similarities[i]))
    kept: list[int] = []
    for i in order:
        if similarities[i] < thresholds.audio_text and readable[i].source != MEASURED:
            detail = f"similarity {similarities[i]:.3f} with the audio, below {thresholds.audio_text:.3f}"
            dropped.append(_drop(readable[i], similarities[i], BELOW_THRESHOLD, detail))
        elif detail := _find_duplicate(i, kept, texts, readable, text_embeddings, thresholds):
            dropped.append(_drop(readable[i], similarities[i], NEAR_DUPLICATE, detail))
        else:
            kept.append(i)
    survivors = [
        KeptCandidate(text=texts[i], source=readable[i].source, similarity=round(similarities[i], 4)) for i in kept
    ]
    return Alignment(kept=tuple(survivors), dropped=tuple(dropped))


def _drop(candidate: Candidate, similarity: float | None, reason: str, detail: str) -> DroppedCandidate:
    text = clean_text(candidate.text[:MAX_DROPPED_CHARACTERS])
    similarity = None if similarity is None else round(similarity, 4)
    return DroppedCandidate(text=text, source=candidate.source, similarity=similarity, reason=reason, detail=detail)


def _find_duplicate(
    i: int,
    kept: list[int],
    texts: list[str],
    candidates: list[Candidate],
    text_embeddings: np.ndarray,
    thresholds: Thresholds,
) -> str | None:
    """Says which kept text a text repeats; `None` when it is alike to none or adds a fact.

    Originals repeat each other only word for word: they are other wordings already, and training draws among them.
    """
    for j in kept:
        if texts[i].casefold() == texts[j].casefold():
            return f"the same words as {texts[j][:60]!r}"
        if candidates[i].source == ORIGINAL:
            continue
        likeness = float(text_embeddings[i] @ text_embeddings[j])
        if likeness >= thresholds.duplicate and not find_unsupported_facts(texts[i], [texts[j]]):
            return f"similarity {likeness:.3f} with {texts[j][:60]!r}"
    return None


def build_fusion_request(record: Record, alignment: Alignment, num_paraphrases: int = 2) -> FusionRequest:
    """Stage 3, before the fuser: collects what the fused caption may say.

    The tags take part only where a caption made from them survived stage 2, or none was made.

    Args:
        record: The clip.
        alignment: What stage 2 says of its candidates.
        num_paraphrases: How many other wordings to ask for.

    Raises:
        ValueError: The clip has no caption at all that could stand.
    """
    heard = [candidate for candidate in alignment.dropped if candidate.similarity is not None]
    if not alignment.kept and not heard:
        raise ValueError(
            f"clip {record.id!r} has no usable caption, and no captioner wrote one. "
            f"Dropped: {[candidate.detail for candidate in alignment.dropped]}."
        )
    best = alignment.kept[0] if alignment.kept else max(heard, key=lambda candidate: candidate.similarity)
    are_tags_wrong = any(c.source == TAGS and c.reason == BELOW_THRESHOLD for c in alignment.dropped)
    return FusionRequest(
        texts=tuple(candidate.text for candidate in alignment.kept),
        tags={} if are_tags_wrong else describe_tags(record.tags),
        fallback=best.text,
        num_paraphrases=num_paraphrases,
        has_survivors=bool(alignment.kept),
        num_originals=sum(candidate.source == ORIGINAL for candidate in alignment.kept),
    )


def accept_fusion(request: FusionRequest, response: str | Mapping[str, Any]) -> Fusion:
    """Stage 3, after the fuser: checks its answer against the request and falls back where it is wrong.

    Args:
        request: What was asked.
        response: The answer, as JSON text or already decoded.

    Raises:
        ValueError: The answer is not JSON of the schema that was asked for; asking again may help.
    """
    caption, paraphrases = read_response(response)
    sources = [*request.texts, *request.tags.values()]
    if failed := _find_faults(caption, sources):
        return fall_back(request, failed)
    good, failed = [], []
    for paraphrase in paraphrases[: request.num_paraphrases]:
        faults = _find_faults(paraphrase, sources)
        failed += [f"paraphrase: {fault}" for fault in faults]
        good += [] if faults else [clean_text(paraphrase)]
    return Fusion(caption=clean_text(caption), paraphrases=tuple(good), failed_checks=tuple(failed))


def fall_back(request: FusionRequest, failed_checks: Sequence[str]) -> Fusion:
    """Lets the best caption that was there before stand, with the other survivors as its paraphrases."""
    others = [text for text in request.texts if text != request.fallback]
    return Fusion(
        caption=request.fallback,
        paraphrases=tuple(others[: request.num_paraphrases]),
        failed_checks=tuple(failed_checks),
        fell_back=True,
    )


def _find_faults(caption: str, sources: Sequence[str]) -> list[str]:
    reason = why_not_a_caption(caption)
    return [reason] if reason else find_unsupported(clean_text(caption), sources)


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
        return fall_back(request, [NO_SURVIVORS])
    return accept_fusion(request, fuser(request))


def check_similarity(
    fusion: Fusion, alignment: Alignment, audio_embedding: np.ndarray, clap: Clap, thresholds: Thresholds
) -> Fusion:
    """Measures how similar the fused caption is to the audio, and falls back if it lost too much.

    A caption that lost too much gives way to the first paraphrase that did not, and only then to one of before.

    Args:
        fusion: What stage 3 wrote.
        alignment: What stage 2 said.
        audio_embedding: CLAP embedding of the clip's audio `(E,)`, of unit length.
        clap: Embeds the caption.
        thresholds: How much the caption may lose.
    """
    wordings = [fusion.caption, *fusion.paraphrases]
    similarities = (clap.embed_text(wordings) @ audio_embedding).tolist()
    if fusion.fell_back or not alignment.kept:
        return replace(fusion, similarity=round(similarities[0], 4))
    before = _similarity_before(alignment)
    is_good = [similarity >= before - thresholds.max_loss for similarity in similarities]
    faults = [
        f"similarity {similarity:.3f} with the audio, {before:.3f} before"
        for similarity, good in zip(similarities, is_good, strict=True)
        if not good
    ]
    if any(is_good):
        caption, *paraphrases = [text for text, good in zip(wordings, is_good, strict=True) if good]
        similarity, is_fallback = similarities[is_good.index(True)], False
    else:
        caption, *paraphrases = [candidate.text for candidate in alignment.kept][: len(wordings)]
        similarity, is_fallback = alignment.kept[0].similarity, True
    return Fusion(
        caption=caption,
        paraphrases=tuple(paraphrases),
        failed_checks=(*fusion.failed_checks, *faults),
        fell_back=is_fallback,
        similarity=round(similarity, 4),
    )


def _similarity_before(alignment: Alignment) -> float:
    """How similar to the audio the surviving originals are, on average; or the best candidate, where none survived."""
    originals = [candidate.similarity for candidate in alignment.kept if candidate.source == ORIGINAL]
    return float(np.mean(originals)) if originals else alignment.kept[0].similarity


def refine_clip(
    record: Record,
    waveform: np.ndarray,
    sampling_rate: int,
    *,
    captioners: Sequence[Captioner],
    clap: Clap,
    thresholds: Thresholds,
    fuser: Fuser = fuse_by_rules,
    num_paraphrases: int = 2,
) -> Refinement:
    """Takes one clip through all three stages, with a fuser that answers at once."""
    audio_embedding = clap.embed_audio([waveform], sampling_rate)[0]
    candidates = generate_candidates(record, waveform, sampling_rate, captioners)
    alignment = align(record, candidates, audio_embedding, clap, thresholds)
    fusion = fuse(record, alignment, fuser, num_paraphrases)
    fusion = check_similarity(fusion, alignment, audio_embedding, clap, thresholds)
    return Refinement(id=record.id, original_captions=record.captions, alignment=alignment, fusion=fusion)


def apply_refinement(record: Record, refinement: Refinement, *, keeps_originals: bool = True) -> Record:
    """Returns the record with its refined captions and where they come from.

    Args:
        record: The clip.
        refinement: What came of it.
        keeps_originals: Whether the captions that it came with follow the refined ones, those that are none excepted.
            Beside the captions, in `original_captions`, all of them stay in any case.
    """
    fusion = refinement.fusion
    columns = {
        "caption_source": "fallback" if fusion.fell_back else "fused",
        "clap_similarity": fusion.similarity,
        "original_captions": [printable(text) for text in refinement.original_captions],
    }
    captions = [fusion.caption, *fusion.paraphrases]
    if keeps_originals:
        originals = (printable(text) for text in refinement.original_captions if why_not_a_caption(text) is None)
        known = {caption.casefold() for caption in captions}
        captions += [text for text in dict.fromkeys(originals) if text.casefold() not in known]
    return replace(record, captions=tuple(captions), extra=record.extra | columns)
