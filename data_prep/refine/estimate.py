"""What a refinement will take, before any of it is paid for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.refine.clean import describe_tags
from data_prep.refine.fusion_prompt import FUSION_SCHEMA
from data_prep.refine.jobs import make_fusion_request
from data_prep.refine.outcomes import FusionRequest
from data_prep.refine.questions import AUDIO_TASK, MAX_HEARD_IN_S, write_tag_messages
from data_prep.refine.run import RefineRun
from data_prep.refine.spending import Prices, Usage, estimate_tokens, sum_usage
from qamdt.manifest import Record


MAX_SAMPLED_CLIPS = 500
_MEASURED = ("music in A minor at 120 bpm", "music with a loud, bright sound")  # as long as what is measured as a rule
_TOKENS_PER_WORDING = 45
_TOKENS_PER_AUDIO_SECOND = 20


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is left to be paid for.

    Args:
        num_requests: Clips that a language model has yet to be asked about.
        usage: Tokens that this takes, estimated from some of the clips.
        cost: Their price.
    """

    num_requests: int
    usage: Usage
    cost: float


def estimate(run: RefineRun, prices: Prices, *, retry_failed: bool = False) -> Estimate:
    """Estimates the tokens and the price of the requests that are left.

    The prompts are those of up to 500 clips spread over the manifest: the true ones where stage 2 is done, and else what
    they would be if every caption survived. The answers are taken to be as long as those that are there already.
    """
    positions = run.positions[:: max(1, len(run.positions) // MAX_SAMPLED_CLIPS)]
    usage = Usage()
    if run.settings.suggester is not None:
        num_open = run.count_open("suggest", retry_failed=retry_failed)
        sizes = [_measure_suggestion(run, record) for _, record in run.manifest.read_good(positions)]
        usage += _multiply(num_open, sizes, _read_output_tokens(run, "suggest", num_wordings=1))
    if run.settings.model is not None:
        num_open = run.count_open("fuse", retry_failed=retry_failed)
        sizes = [
            estimate_tokens(
                len(json.dumps(run.settings.model.write_body(request.messages, FUSION_SCHEMA)["messages"]))
            )
            for request in _sample_requests(run, positions)
        ]
        num_wordings = 1 + run.settings.num_paraphrases
        usage += _multiply(num_open, sizes, _read_output_tokens(run, "fuse", num_wordings=num_wordings))
    return Estimate(num_requests=usage.requests, usage=usage, cost=prices.cost(usage))


def _multiply(num_requests: int, input_tokens: list[int], output_tokens: float) -> Usage:
    mean = sum(input_tokens) / max(1, len(input_tokens))
    return Usage(round(num_requests * mean), round(num_requests * output_tokens), num_requests)


def _read_output_tokens(run: RefineRun, step: str, *, num_wordings: int) -> float:
    """Returns how many tokens an answer of a step takes, as the answers so far did."""
    done = sum_usage(run.stores[step].history())
    return done.output_tokens / done.requests if done.requests else _TOKENS_PER_WORDING * num_wordings


def _measure_suggestion(run: RefineRun, record: Record) -> int:
    """Returns how many tokens it takes to ask for a suggestion."""
    if run.settings.suggest_from == "audio":
        heard_in_s = min(record.duration_in_s, MAX_HEARD_IN_S)
        return estimate_tokens(len(AUDIO_TASK)) + round(heard_in_s * _TOKENS_PER_AUDIO_SECOND)
    return estimate_tokens(len(json.dumps(write_tag_messages(record))))


def _sample_requests(run: RefineRun, positions: range) -> Iterator[FusionRequest]:
    """Yields what would be asked about some clips."""
    ready = {job.record.id: job for job in run.iterate_jobs("fuse", retry_failed=True, positions=positions)}
    for _, record in run.manifest.read_good(positions):
        if record.id in ready:
            try:
                yield make_fusion_request(ready[record.id], run.settings)
            except ValueError:
                continue
        else:
            texts = (*record.captions, *_MEASURED)
            yield FusionRequest(
                texts=texts,
                tags=describe_tags(record.tags),
                fallback=texts[0],
                num_paraphrases=run.settings.num_paraphrases,
                has_survivors=True,
            )
