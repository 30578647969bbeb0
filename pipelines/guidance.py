"""Guidance over text and over quality: what the branches of a step are told, and how their outputs combine.

Shapes: B batch, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class Branch:
    """What the network is told in one branch of guidance, for every clip of a batch.

    Args:
        prompt_embeds: Text states of shape `(batch, text_tokens, dim)`.
        prompt_attention_mask: Shape `(batch, text_tokens)`, true for real tokens.
        quality_level: Levels 0 to 5 of shape `(batch,)`; the clip's, and the data set's that it would be from.
        frame_quality: Fractional levels of shape `(batch, latent_frames)`.
    """

    prompt_embeds: torch.Tensor
    prompt_attention_mask: torch.Tensor
    quality_level: torch.Tensor
    frame_quality: torch.Tensor

    def repeat(self, num_times: int) -> Branch:
        """Each clip `num_times` in a row."""
        return Branch(*(tensor.repeat_interleave(num_times, dim=0) for tensor in vars(self).values()))


def join_branches(branches: Sequence[Branch]) -> Branch:
    """Puts branches behind one another along the batch, so that one call of the network serves them all."""
    num_tokens = max(branch.prompt_embeds.shape[1] for branch in branches)
    embeds, masks = [], []
    for branch in branches:
        padding = num_tokens - branch.prompt_embeds.shape[1]
        embeds.append(F.pad(branch.prompt_embeds, (0, 0, 0, padding)))  # (B, L, D)
        masks.append(F.pad(branch.prompt_attention_mask, (0, padding)))
    return Branch(
        prompt_embeds=torch.cat(embeds),
        prompt_attention_mask=torch.cat(masks),
        quality_level=torch.cat([branch.quality_level for branch in branches]),
        frame_quality=torch.cat([branch.frame_quality for branch in branches]),
    )


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
