"""What training the scorer minimises, and how its weights are updated."""

from __future__ import annotations

import math

import torch
from torch import nn

from whisq.modeling_whisq import WhisQModel
from whisq.training.config import LossConfig, OptimConfig
from whisq.training.dataset import Batch
from whisq.training.finetuning import FineTunedEncoders
from whisq.training.loss import huber, whisq_loss


class WhisQObjective(nn.Module):
    """The loss of a batch, as a module, so that processes exchange gradients after one forward pass.

    To the loss of whole clips comes the Huber loss of the overall quality of one random window of each clip, so that the
    head knows the short stretches that quality curves are made of.

    Args:
        model: The scorer.
        encoders: The encoders that learn with it.
        config: Says how the parts are computed and weighted.
        window_loss: Weight of the random windows.
    """

    def __init__(self, model: WhisQModel, encoders: FineTunedEncoders, config: LossConfig, window_loss: float):
        super().__init__()
        self.model = model
        self.encoders = encoders
        self.config = config
        self.window_loss = window_loss

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Returns `loss` and its parts."""
        batch = self.encoders(batch)
        output = self.model(batch.audio_hidden_states, batch.audio_mask, batch.text_hidden_states, batch.text_mask)
        whole = whisq_loss(
            output,
            batch.overall_quality,
            batch.text_alignment,
            batch.audio_mask,
            batch.text_mask,
            self.config,
            is_aligned=batch.text_alignment >= self.config.min_match_rating,
        )
        loss = whole.loss
        parts = {name: getattr(whole, name) for name in ("overall_quality", "text_alignment", "alignment")}
        if self.window_loss:
            heard = self.model(batch.audio_hidden_states, batch.window_mask).overall_quality
            parts["window_quality"] = huber(heard, batch.window_quality, self.config).mean()
            loss = loss + self.window_loss * parts["window_quality"]
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}


def build_optimizer(objective: WhisQObjective, config: OptimConfig) -> torch.optim.AdamW:
    """Returns AdamW with weight decay for matrices alone; each group keeps its peak rate as `initial_lr`."""
    groups = []
    for module, rate in (
        (objective.model, config.learning_rate),
        (objective.encoders, config.encoder_learning_rate),
    ):
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        for some, weight_decay in ((matrices, config.weight_decay), (others, 0.0)):
            if some:
                groups.append({"params": some, "weight_decay": weight_decay, "lr": rate, "initial_lr": rate})
    return torch.optim.AdamW(groups)


def learning_rate_factor(config: OptimConfig, progress: float) -> float:
    """Returns what the peak rate is multiplied with after a share `progress` of the longest run."""
    if progress < config.warmup_share:
        return progress / config.warmup_share
    return 0.5 * (1 + math.cos(math.pi * (progress - config.warmup_share) / (1 - config.warmup_share)))
