"""Guidance over text and over quality: how the outputs of its branches combine."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def guide(model_output: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
    """Moves the first branch's output away from that of each other branch.

    With one negative branch this is the usual `negative + scale * (conditional - negative)`.

    Args:
        model_output: Outputs of the branches behind one another, of shape `((1 + scales) * batch, ...)`.
        scales: Strength against each of the other branches; 1 leaves the output as it is.
    """
    conditional, *negatives = model_output.chunk(1 + len(scales))
    guided = conditional
    for scale, negative in zip(scales, negatives, strict=True):
        guided = guided + (scale - 1) * (conditional - negative)
    return guided
