"""What WhisQ is trained to: people's scores, and prompts whose tokens lie near those of their music.

Shapes: B batch, D width.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from whisq.gromov_wasserstein import gromov_wasserstein_distance
from whisq.modeling_whisq import WhisQOutput, masked_mean
from whisq.sinkhorn import sinkhorn_distance
from whisq.training.config import LossConfig


@dataclass(frozen=True)
class WhisQLoss:
    """The loss and what it is made of, all scalars; only `loss` is for `backward`.

    Args:
        loss: Mean of the losses of the two scores, plus the weighted alignment.
        overall_quality: Huber loss of the overall quality.
        text_alignment: Huber loss of the text alignment.
        alignment: Distance of prompts from their music, before it is weighted.
    """

    loss: torch.Tensor
    overall_quality: torch.Tensor
    text_alignment: torch.Tensor
    alignment: torch.Tensor


def whisq_loss(
    output: WhisQOutput,
    overall_quality: torch.Tensor,
    text_alignment: torch.Tensor,
    audio_mask: torch.Tensor,
    text_mask: torch.Tensor,
    config: LossConfig,
    is_aligned: torch.Tensor | None = None,
) -> WhisQLoss:
    """Computes the loss of a batch.

    Args:
        output: What the model said, with text.
        overall_quality: People's scores of the quality `(batch,)`, NaN where there is none.
        text_alignment: People's scores of the alignment `(batch,)`, NaN where there is none.
        audio_mask: Shape `(batch, audio_tokens)`, true for real tokens.
        text_mask: Shape `(batch, text_tokens)`, true for real tokens.
        config: Which alignment, and all weights.
        is_aligned: Which of the prompts belong to their music, `(batch,)`; only those are pulled towards it. `None`
            for all that have a score, as in the paper.
    """
    quality_loss = known_mean(huber(output.overall_quality, overall_quality, config), ~overall_quality.isnan())
    alignment_loss = known_mean(huber(output.text_alignment, text_alignment, config), ~text_alignment.isnan())
    is_aligned = ~text_alignment.isnan() if is_aligned is None else is_aligned
    distance = alignment_distance(output, audio_mask, text_mask, is_aligned, config)
    return WhisQLoss(
        loss=(quality_loss + alignment_loss) / 2 + config.alignment_weight * distance,
        overall_quality=quality_loss.detach(),
        text_alignment=alignment_loss.detach(),
        alignment=distance.detach(),
    )


def alignment_distance(
    output: WhisQOutput,
    audio_mask: torch.Tensor,
    text_mask: torch.Tensor,
    is_aligned: torch.Tensor,
    config: LossConfig,
) -> torch.Tensor:
    """Mean distance of the prompts from their music, over the pairs that belong together; 0 without such a pair."""
    if config.alignment == "none" or config.alignment_weight == 0 or not is_aligned.any():
        return output.text_alignment.new_zeros(())
    clouds = (
        output.audio_hidden_states[is_aligned],
        audio_mask[is_aligned],
        output.text_hidden_states[is_aligned],
        text_mask[is_aligned],
    )
    if config.alignment == "sinkhorn":
        options = {"blur": config.blur, "scaling": config.scaling, "normalize": config.normalize}
        return sinkhorn_distance(*clouds, **options).mean()
    if config.alignment == "gromov_wasserstein":
        options = {"blur": config.blur, "scaling": config.scaling, "normalize": config.normalize}
        return gromov_wasserstein_distance(*clouds, **options).mean()
    return contrastive_loss(*clouds).mean()


def contrastive_loss(
    source: torch.Tensor,
    source_mask: torch.Tensor,
    target: torch.Tensor,
    target_mask: torch.Tensor,
    *,
    temperature: float = 0.07,
) -> torch.Tensor:
    """Computes how hard it is to tell which clip of the batch belongs to which prompt, by their pooled tokens.

    Clips with the same prompt do not count against each other, and a batch of one clip has no loss.

    Args:
        source: Audio tokens of shape `(batch, source_points, dim)`.
        source_mask: Shape `(batch, source_points)`, true for real tokens.
        target: Text tokens of shape `(batch, target_points, dim)`.
        target_mask: Shape `(batch, target_points)`, true for real tokens.
        temperature: Divides the similarities.

    Returns:
        The mean of the losses of clip to prompt and of prompt to clip, in float32, of shape `(batch,)`.
    """
    with torch.autocast(source.device.type, enabled=False):
        source = F.normalize(masked_mean(source.float(), source_mask), dim=-1)  # (B, D)
        target = F.normalize(masked_mean(target.float(), target_mask), dim=-1)
        logits = source @ target.mT / temperature  # (B, B)
        is_same_prompt = target.detach() @ target.detach().mT > 1 - 1e-5
        itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(is_same_prompt & ~itself, -torch.inf)
        labels = torch.arange(len(logits), device=logits.device)
        to_prompts = F.cross_entropy(logits, labels, reduction="none")
        to_clips = F.cross_entropy(logits.mT, labels, reduction="none")
        return (to_prompts + to_clips) / 2


def huber(scores: torch.Tensor, targets: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Huber loss of each clip `(batch,)`, 0 where the target is NaN, so that no NaN reaches a gradient."""
    targets = torch.where(targets.isnan(), scores.detach(), targets)
    return F.huber_loss(scores, targets, reduction="none", delta=config.huber_delta)


def known_mean(losses: torch.Tensor, is_known: torch.Tensor) -> torch.Tensor:
    """Mean over the clips with a target; 0 when there is none."""
    return losses.sum() / is_known.sum().clamp(min=1)
