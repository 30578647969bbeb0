"""Best of n: several candidates of one prompt, of which the one is kept that WhisQ and CLAP like best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from whisq.audio import resample
from whisq.embedded import load_clap
from whisq.scorer import WhisQScorer
from whisq.windows import SILENT_PEAK


# What candidates can be compared by, and what the rating is called in the record of the choice.
RATING_OF_CRITERION = {"quality": "overall_quality", "alignment": "text_alignment", "clap": "clap_similarity"}


class Judge:
    """Compares waveforms by how good they sound and by how well they follow a prompt.

    Args:
        criteria: Any of "quality" (WhisQ's overall quality), "alignment" (WhisQ's text alignment) and "clap" (CLAP's
            similarity of sound and prompt). With several, the least sum of ranks wins.
        scorer: Folder or Hub id of a WhisQ scorer; the embedded one when `None`.
        device: Where to compute.
    """

    def __init__(self, criteria: Sequence[str], *, scorer: str | None = None, device: str | torch.device = "cpu"):
        unknown = set(criteria) - RATING_OF_CRITERION.keys()
        if unknown or not criteria:
            raise ValueError(f"`criteria` must be some of {sorted(RATING_OF_CRITERION)}, got {list(criteria)}.")
        self.criteria = tuple(criteria)
        needs_scorer = {"quality", "alignment"} & set(criteria)
        self.scorer = WhisQScorer.from_pretrained(scorer, device=device) if needs_scorer else None
        self.clap = load_clap().to(device) if "clap" in criteria else None

    def describe(self) -> dict[str, str]:
        """Which models judge."""
        models = {} if self.scorer is None else {"scorer": self.scorer.name}
        return models if self.clap is None else models | {"clap": self.clap.config.name}

    def rate(self, waveforms: torch.Tensor, sampling_rate: int, prompt: str) -> list[dict[str, float | None]]:
        """Rates waveforms `(batch, samples)` against one prompt; a silent one has `None` for its ratings."""
        ratings: list[dict[str, float | None]] = [{} for _ in waveforms]
        if self.scorer is not None:
            for rating, score in zip(ratings, self.scorer.score(waveforms, sampling_rate, prompt), strict=True):
                rating["overall_quality"] = _rounded(score.overall_quality)
                rating["text_alignment"] = _rounded(score.text_alignment)
        if self.clap is not None:
            heard = torch.stack([resample(waveform.cpu(), sampling_rate) for waveform in waveforms])
            embeddings = self.clap.embed_audio(heard.to(self.clap.device))
            similarities = (embeddings @ self.clap.embed_text([prompt]).T)[:, 0].tolist()
            for rating, waveform, similarity in zip(ratings, heard, similarities, strict=True):
                is_audible = bool(waveform.isfinite().all() and waveform.abs().max() > SILENT_PEAK)
                rating["clap_similarity"] = _rounded(similarity) if is_audible else None
        return ratings

    def choose(self, ratings: Sequence[dict[str, float | None]]) -> int:
        """Returns which of the rated candidates is best; among equals the first."""
        rank_sums = np.zeros(len(ratings))
        for criterion in self.criteria:
            values = [rating[RATING_OF_CRITERION[criterion]] for rating in ratings]
            values = np.array([-np.inf if value is None else value for value in values])
            rank_sums += (values[None] > values[:, None]).sum(axis=1)  # how many candidates are better
        return int(rank_sums.argmin())


@dataclass(frozen=True, kw_only=True)
class Best:
    """The candidate that was kept.

    Args:
        waveform: Its samples `(samples,)`.
        seed: Its seed.
        candidates: Seed and ratings of each candidate.
    """

    waveform: torch.Tensor
    seed: int
    candidates: list[dict[str, float | None]]


def generate_best_of(
    generate: Callable[[list[int]], torch.Tensor],
    num_candidates: int,
    judge: Judge,
    *,
    prompt: str,
    sampling_rate: int,
    seed: int = 0,
) -> Best:
    """Generates candidates and keeps the best one.

    Args:
        generate: Makes waveforms `(batch, samples)`, one from each seed of a list.
        num_candidates: How many to generate.
        judge: Compares them.
        prompt: What they should follow.
        sampling_rate: Samples per second of the waveforms, in Hz.
        seed: Seed of the first candidate; those of the others count up.
    """
    if num_candidates < 1:
        raise ValueError(f"`num_candidates` must be at least 1, got {num_candidates}.")
    seeds = [seed + i for i in range(num_candidates)]
    waveforms = generate(seeds)
    ratings = judge.rate(waveforms, sampling_rate, prompt)
    index = judge.choose(ratings)
    candidates = [{"seed": seed} | rating for seed, rating in zip(seeds, ratings, strict=True)]
    return Best(waveform=waveforms[index], seed=seeds[index], candidates=candidates)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
