"""What a refinement will take, before any of it is paid for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.refine.clean import describe_tags
from data_prep.refine.jobs import make_fusion_request
from data_prep.refine.outcomes import FusionRequest
from data_prep.refine.run import RefineRun
from data_prep.refine.spending import Prices, Usage, estimate_tokens


MAX_SAMPLED_CLIPS = 500
_MEASURED = ("music in A minor at 120 bpm", "music with a loud, bright sound")  # as long as what is measured as a rule
_TOKENS_PER_WORDING = 45


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

    The prompts are those of up to 500 clips spread over the manifest, the true ones where stage 2 is done, and else what
    they would be if every caption survived. The answers are taken to be as long as those that are there already.
    """
    num_open = run.count_open("fuse", retry_failed=retry_failed)
    if run.settings.model is None or not num_open:
        return Estimate(num_requests=0, usage=Usage(), cost=0.0)
    sizes = [
        len(json.dumps(run.settings.model.write_body(request.messages, request.json_schema)["messages"]))
        for request in _sample_requests(run)
    ]
    input_tokens = estimate_tokens(round(sum(sizes) / len(sizes))) if sizes else 0
    done = run.stores["fuse"].usage
    output_tokens = (
        done.output_tokens / done.requests
        if done.requests
        else _TOKENS_PER_WORDING * (1 + run.settings.num_paraphrases)
    )
    usage = Usage(input_tokens * num_open, round(output_tokens * num_open), num_open)
    return Estimate(num_requests=num_open, usage=usage, cost=prices.cost(usage))


def _sample_requests(run: RefineRun) -> Iterator[FusionRequest]:
    """Yields what would be asked about some clips."""
    positions = run.positions[:: max(1, len(run.positions) // MAX_SAMPLED_CLIPS)]
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
