"""Checks of the arguments of a pipeline call; each error names the argument, its value and what is expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from qamdt.files import is_text


if TYPE_CHECKING:
    import torch


def check_number(
    name: str, value: float, *, minimum: float = 0, maximum: float = math.inf, is_open: bool = False
) -> None:
    """Refuses what is no finite number from `minimum` (with `is_open` above it) to `maximum`."""
    is_number = _is_real(value) and abs(value) < math.inf
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
    is_pair = isinstance(interval, list | tuple) and len(interval) == 2
    if not (is_pair and all(map(_is_real, interval)) and 0 <= interval[0] < interval[1] <= 1):
        raise ValueError(f"`{name}` must be two rising fractions between 0 and 1, got {interval!r}.")


def check_choices(name: str, values: Sequence[str], choices: Sequence[str]) -> None:
    """Refuses values that are not among the choices."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"`{name}` must be a list of some of {', '.join(map(repr, choices))}, got {quoted(values)}.")
    for value in values:
        if value not in choices:
            raise ValueError(f"`{name}` must be among {', '.join(map(repr, choices))}, got {value!r}.")


def check_texts(name: str, texts: str | list[str], num_prompts: int | None = None) -> None:
    """Refuses what is neither a text nor a list of texts, at least one and as many as there are prompts."""
    if isinstance(texts, str):
        check_characters(name, texts)
        return
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{name}` must be a text or a list of at least one text, got {quoted(texts)}.")
    if num_prompts is not None and len(texts) != num_prompts:
        raise ValueError(
            f"`{name}` must be one text or a list with one for each of the {num_prompts} prompts, got {len(texts)}."
        )
    for text in texts:
        check_characters(name, text)


def check_characters(name: str, text: str) -> None:
    """Refuses halves of surrogate pairs, which come from bytes that are no UTF-8, and which no tokenizer takes."""
    if not is_text(text):
        raise ValueError(f"`{name}` must be text in UTF-8, got {quoted(text)}.")


def check_embeds(
    name: str, embeds: torch.Tensor, mask: torch.Tensor | None, dim: int, num_prompts: int | None = None
) -> None:
    """Refuses text states that the network cannot take, and a mask that does not fit them."""
    check_tensor(f"{name}_embeds", embeds)
    if mask is not None and not hasattr(mask, "shape"):
        raise ValueError(f"`{name}_attention_mask` must be a tensor, got {quoted(mask)}.")
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
    if mask is not None and not mask.bool().any(dim=1).all():
        raise ValueError(f"`{name}_attention_mask` must leave at least one token of every text, got a row of none.")


def check_tensor(name: str, values: torch.Tensor) -> None:
    """Refuses what is no tensor of finite floating-point numbers."""
    is_floating = hasattr(values, "is_floating_point") and values.is_floating_point()
    if not is_floating or not values.isfinite().all():
        got = f"{values.dtype} with NaN or infinity" if is_floating else quoted(values)
        raise ValueError(f"`{name}` must be a tensor of finite floating-point numbers, got {got}.")


def check_generator(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> None:
    """Refuses what is neither a generator nor a list with one for each waveform."""
    if generator is None:
        return
    generators = generator if isinstance(generator, list) else [generator] * batch_size
    # They are known by what they can do, so that this module needs no torch.
    if not all(hasattr(each, "initial_seed") for each in generators):
        raise ValueError(
            f"`generator` must be a torch.Generator or a list of them, got {quoted(generator)}; for a seed write "
            "`torch.Generator().manual_seed(42)`."
        )
    if len(generators) != batch_size:
        raise ValueError(
            f"`generator` must be one generator or a list with one for each of the {batch_size} waveforms, "
            f"got a list of {len(generators)}."
        )


def check_callback(name: str, callback: Any) -> None:
    """Refuses what cannot be called."""
    if callback is not None and not callable(callback):
        raise ValueError(f"`{name}` must be a function or None, got {quoted(callback)}.")


def quoted(value: Any, limit: int = 80) -> str:
    """A value as an error message shows it: long ones are cut."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
