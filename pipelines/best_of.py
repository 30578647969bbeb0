"""Best of n: waveforms made for one prompt are rated by how good they sound and by how well they follow it.

Shapes: N waveforms made for a prompt, S samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from pipelines.quality_argument import is_number
from pipelines.request import CRITERIA
from pipelines.selection import Choice, RankBy, Selection, check_rank_by
from whisq.audio import resample
from whisq.embedded import load_clap
from whisq.scorer import ClipScore, WhisQScorer
from whisq.windows import SILENT_PEAK


# What waveforms can be compared by, and what the rating is called in the record of the choice.
RATING_OF_CRITERION = {name: "clap_similarity" if name == "clap" else name for name in CRITERIA}
CALLED = "rank_by"  # and what a callable returned


@functools.lru_cache(maxsize=1)
def load_scorer(device: str) -> WhisQScorer:
    """Loads the embedded scorer onto a device, once."""
    return WhisQScorer.from_pretrained(device=device)


class Judge:
    """Rates waveforms, and ranks them by their ratings.

    Args:
        rank_by: "overall_quality" or "text_alignment" (WhisQ's), "clap" (CLAP's similarity of sound and prompt), or
            several of these, of which the least sum of ranks wins; or a function `rank_by(waveform, sampling_rate,
            prompt)` of a waveform `(samples,)` as numpy has it, which returns a number that is greater for what is better.
        scorer: What overall quality and text alignment are taken from.

    Raises:
        ValueError: `rank_by` is none of these.
    """

    def __init__(self, rank_by: RankBy, scorer: WhisQScorer):
        check_rank_by(rank_by)
        self.rate_by_call = rank_by if callable(rank_by) else None
        self.criteria = () if callable(rank_by) else (rank_by,) if isinstance(rank_by, str) else tuple(rank_by)
        self.scorer = scorer
        self.clap = load_clap().to(scorer.device) if "clap" in self.criteria else None

    @property
    def needs_scores(self) -> bool:
        """Whether WhisQ has a say."""
        return bool({"overall_quality", "text_alignment"} & set(self.criteria))

    def describe(self) -> dict[str, str]:
        """Which models judge."""
        models = {"scorer": self.scorer.name} if self.needs_scores else {}
        return models if self.clap is None else models | {"clap": self.clap.config.name}

    def rate(
        self,
        waveforms: torch.Tensor,
        sampling_rate: int,
        prompt: str | None,
        scores: Sequence[ClipScore] | None = None,
    ) -> list[dict[str, float | None]]:
        """Rates waveforms `(N, S)` against one prompt; a silent one has `None` for the ratings of models.

        Args:
            waveforms: What to rate.
            sampling_rate: Samples per second, in Hz.
            prompt: What they should follow.
            scores: The scorer's, one each, where they are there already.
        """
        ratings: list[dict[str, float | None]] = [{} for _ in waveforms]
        if self.needs_scores:
            scores = self.scorer.score(waveforms, sampling_rate, prompt) if scores is None else scores
            for rating, score in zip(ratings, scores, strict=True):
                rating["overall_quality"] = _rounded(score.overall_quality)
                rating["text_alignment"] = _rounded(score.text_alignment)
        if self.clap is not None:
            for rating, similarity in zip(ratings, self._similarities(waveforms, sampling_rate, prompt), strict=True):
                rating["clap_similarity"] = _rounded(similarity)
        if self.rate_by_call is not None:
            for rating, waveform in zip(ratings, waveforms.cpu().numpy(), strict=True):
                rating[CALLED] = _as_rating(self.rate_by_call(waveform, sampling_rate, prompt))
        return ratings

    def rank(self, ratings: Sequence[dict[str, float | None]]) -> list[int]:
        """Returns the places of the rated waveforms, the best first; equals stay in order."""
        rank_sums = np.zeros(len(ratings))
        for name in [RATING_OF_CRITERION[criterion] for criterion in self.criteria] or [CALLED]:
            values = np.array([-np.inf if rating[name] is None else rating[name] for rating in ratings])
            rank_sums += (values[None] > values[:, None]).sum(axis=1)  # how many others are better
        return np.argsort(rank_sums, kind="stable").tolist()

    def _similarities(self, waveforms: torch.Tensor, sampling_rate: int, prompt: str) -> list[float | None]:
        heard = torch.stack([resample(waveform.cpu(), sampling_rate) for waveform in waveforms])
        embeddings = self.clap.embed_audio(heard.to(self.clap.device))
        similarities = (embeddings @ self.clap.embed_text([prompt]).T)[:, 0].tolist()
        is_audible = [bool(waveform.isfinite().all() and waveform.abs().max() > SILENT_PEAK) for waveform in heard]
        return [value if audible else None for value, audible in zip(similarities, is_audible, strict=True)]


def select(
    selection: Selection, waveforms: torch.Tensor, sampling_rate: int, scorer: WhisQScorer
) -> tuple[list[int], list[ClipScore] | None, list[Choice] | None]:
    """Rates and ranks the waveforms `(prompts * N, S)` of a call.

    Args:
        selection: What is asked for.
        waveforms: All that were made, those of a prompt in a row.
        sampling_rate: Samples per second, in Hz.
        scorer: What scores them.

    Returns:
        The places of the waveforms that are kept, the scorer's opinion of them, and the choices, one for each prompt;
        `None` for what was not asked for.
    """
    judge = None if selection.rank_by is None else Judge(selection.rank_by, scorer)
    count = selection.num_waveforms_per_prompt
    scores = None
    if selection.return_scores or (judge is not None and judge.needs_scores):
        prompts = [prompt for prompt in selection.prompts for _ in range(count)]
        scores = scorer.score(waveforms, sampling_rate, prompts)
    if judge is None:
        return list(range(len(waveforms))), scores, None
    choices = []
    for start, prompt in zip(range(0, len(waveforms), count), selection.prompts, strict=True):
        some = slice(start, start + count)
        ratings = judge.rate(waveforms[some], sampling_rate, prompt, None if scores is None else scores[some])
        kept = judge.rank(ratings)[: selection.keep]
        choices.append(Choice(kept=tuple(kept), ratings=tuple(ratings), models=judge.describe()))
    places = [p * count + number for p, choice in enumerate(choices) for number in choice.kept]
    return places, [scores[place] for place in places] if selection.return_scores else None, choices


def _as_rating(value: object) -> float:
    if hasattr(value, "item"):  # a tensor or an array of one number
        value = value.item()
    if not is_number(value) or math.isnan(value):
        raise ValueError(f"`rank_by` must return a number, greater for what is better, got {value!r}.")
    return float(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
