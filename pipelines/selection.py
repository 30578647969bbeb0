"""What a call keeps of the waveforms that it makes for a prompt, and whether it scores them.

    output = pipe("solo piano", num_waveforms_per_prompt=8, keep=2, rank_by="overall_quality", return_scores=True)
    output.scores[0].overall_quality, output.choices[0].ratings

`pipelines.best_of` listens to them; nothing slow is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.input_checks import check_choices, check_count
from pipelines.request import CRITERIA


RankBy = str | Sequence[str] | Callable[[np.ndarray, int, str | None], float]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of the waveforms made for one prompt were kept.

    Args:
        kept: Their numbers among all that were made, the best first.
        ratings: What each of all was rated.
        models: Which models judged.
    """

    kept: tuple[int, ...]
    ratings: tuple[dict[str, float | None], ...]
    models: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a call keeps of its waveforms, and whether it scores them.

    Args:
        prompts: What each prompt's waveforms should follow; `None` where only text states are known.
        num_waveforms_per_prompt: How many are made for each.
        keep: How many of these are kept; all when `None`.
        rank_by: As `Judge` takes it: the order of what is kept. In order of making when `None`.
        return_scores: Whether the scorer's opinion of what is kept is wanted.

    Raises:
        ValueError: These do not go together.
    """

    prompts: Sequence[str | None]
    num_waveforms_per_prompt: int
    keep: int | None = None
    rank_by: RankBy | None = None
    return_scores: bool = False

    def __post_init__(self):
        if not isinstance(self.return_scores, bool):
            raise ValueError(f"`return_scores` must be true or false, got {self.return_scores!r}.")
        if self.keep is not None:
            check_count("keep", self.keep, self.num_waveforms_per_prompt)
            if self.rank_by is None:
                raise ValueError(
                    f"`keep` needs `rank_by`, which says what is best: {', '.join(map(repr, CRITERIA))}, several of these "
                    "or a function."
                )
        if self.rank_by is not None:
            check_rank_by(self.rank_by, self.prompts)

    @property
    def listens(self) -> bool:
        """Whether the waveforms must be heard for it."""
        return self.rank_by is not None or self.return_scores


def check_rank_by(rank_by: RankBy, prompts: Sequence[str | None] = ()) -> None:
    """Refuses what nothing can be ranked by, and what needs a prompt where there is none."""
    if callable(rank_by):
        return
    names = [rank_by] if isinstance(rank_by, str) else rank_by
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(
            f"`rank_by` must be one or several of {', '.join(map(repr, CRITERIA))} or a function, got {rank_by!r}."
        )
    check_choices("rank_by", names, CRITERIA)
    for name in names:
        if name != "overall_quality" and not all(prompt and prompt.strip() for prompt in prompts):
            raise ValueError(
                f"`rank_by` must be 'overall_quality' or a function where there is no prompt to follow, got {name!r}."
            )
