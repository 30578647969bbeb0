"""Checks of the arguments of a pipeline call; each error names the argument, its value and what is expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


def check_number(
    name: str, value: float, *, minimum: float = 0, maximum: float = math.inf, is_open: bool = False
) -> None:
    """Refuses what is no finite number from `minimum` (with `is_open` above it) to `maximum`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and abs(value) < math.inf
    if not is_number or not minimum <= value <= maximum or (is_open and value == minimum):
        above = f"greater than {minimum:g}" if is_open else f"at least {minimum:g}"
        below = "" if maximum == math.inf else f" and at most {maximum:g}"
        raise ValueError(f"`{name}` must be a number {above}{below}, got {value!r}.")


def check_count(name: str, value: int, maximum: int | None = None, *, minimum: int = 1) -> None:
    """Refuses what is no integer from `minimum` to `maximum`."""
    is_count = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_count or value < minimum or (maximum is not None and value > maximum):
        limit = "" if maximum is None else f" and at most {maximum}"
        raise ValueError(f"`{name}` must be an integer of at least {minimum}{limit}, got {value!r}.")


def check_interval(name: str, interval: Sequence[float]) -> None:
    """Refuses what is no pair of fractions in rising order."""
    is_pair = isinstance(interval, Sequence) and len(interval) == 2
    if not is_pair or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"`{name}` must be two rising fractions between 0 and 1, got {interval!r}.")


def check_choices(name: str, values: Sequence[str], choices: Sequence[str]) -> None:
    """Refuses values that are not among the choices."""
    for value in values:
        if value not in choices:
            raise ValueError(f"`{name}` must be among {', '.join(map(repr, choices))}, got {value!r}.")


def check_texts(name: str, texts: str | list[str], num_prompts: int | None = None) -> None:
    """Refuses what is neither a text nor a list of texts, at least one and as many as there are prompts."""
    if isinstance(texts, str):
        return
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{name}` must be a text or a list of at least one text, got {texts!r}.")
    if num_prompts is not None and len(texts) != num_prompts:
        raise ValueError(
            f"`{name}` must be one text or a list with one for each of the {num_prompts} prompts, got {len(texts)}."
        )


def check_embeds(
    name: str, embeds: torch.Tensor, mask: torch.Tensor | None, dim: int, num_prompts: int | None = None
) -> None:
    """Refuses text states that the network cannot take, and a mask that does not fit them."""
    if embeds.ndim != 3 or embeds.shape[2] != dim or 0 in embeds.shape or len(embeds) != (num_prompts or len(embeds)):
        prompts = "prompts" if num_prompts is None else num_prompts
        raise ValueError(
            f"`{name}_embeds` must have shape ({prompts}, text_tokens, {dim}), got {tuple(embeds.shape)}."
        )
    if mask is not None and mask.shape != embeds.shape[:2]:
        raise ValueError(
            f"`{name}_attention_mask` must have the shape {tuple(embeds.shape[:2])} of `{name}_embeds`, "
            f"got {tuple(mask.shape)}."
        )


def check_generator(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> None:
    """Refuses a list that has not one generator for each waveform."""
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(
            f"`generator` must be one generator or a list with one for each of the {batch_size} waveforms, "
            f"got a list of {len(generator)}."
        )
