"""What training the scorer needs beside the model: its objective, optimizer, checkpoints, and predictions."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from whisq.config import LossConfig, OptimConfig
from whisq.dataset import Batch, CachedClips
from whisq.finetuning import FineTunedEncoders
from whisq.loss import huber, whisq_loss
from whisq.metrics import measure_agreement
from whisq.modeling_whisq import WhisQModel
from whisq.ratings import RatedClip


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


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model says about clips; an alignment without a prompt is NaN.

    Args:
        overall_quality: Values `(clips,)`.
        text_alignment: Values `(clips,)`.
    """

    overall_quality: np.ndarray
    text_alignment: np.ndarray


@torch.inference_mode()
def predict(
    model: WhisQModel,
    cached: CachedClips,
    clips: Sequence[RatedClip],
    *,
    batch_size: int,
    device: torch.device,
    encoders: FineTunedEncoders | None = None,
) -> Predictions:
    """Scores clips as a whole, in evaluation mode.

    Args:
        model: The scorer; its mode is restored afterwards.
        cached: The hidden states.
        clips: The clips with their prompts.
        batch_size: Clips scored at once.
        device: Where `model` lies.
        encoders: The encoders that learnt with `model`, on the same device; their mode is restored as well.
    """
    encoders = encoders or FineTunedEncoders()
    modes = [(module, module.training) for module in (model, encoders)]
    for module, _ in modes:
        module.eval()
    quality, alignment = [], []
    for start in range(0, len(clips), batch_size):
        some = clips[start : start + batch_size]
        batch = cached.collate(some, hears=encoders.audio is not None, reads=encoders.text is not None).to(device)
        batch = encoders(batch)
        output = model(batch.audio_hidden_states, batch.audio_mask, batch.text_hidden_states, batch.text_mask)
        has_prompt = torch.tensor([clip.prompt is not None for clip in some])
        quality.append(output.overall_quality.float().cpu())
        alignment.append(output.text_alignment.float().cpu().masked_fill(~has_prompt, math.nan))
    for module, was_training in modes:
        module.train(was_training)
    return Predictions(
        overall_quality=torch.cat(quality).double().numpy(), text_alignment=torch.cat(alignment).double().numpy()
    )


def dev_score(clips: Sequence[RatedClip], predictions: Predictions) -> dict[str, float]:
    """Returns what early stopping looks at: `score`, the mean of the rank correlations of what was rated."""
    rated = [i for i, clip in enumerate(clips) if clip.text_alignment is not None]
    quality = measure_agreement([clip.overall_quality for clip in clips], predictions.overall_quality)
    scores = {"overall_quality_srcc": quality.srcc}
    if rated:
        ratings = [clips[i].text_alignment for i in rated]
        scores["text_alignment_srcc"] = measure_agreement(ratings, predictions.text_alignment[rated]).srcc
    # A constant prediction ranks nothing.
    return scores | {"score": math.fsum(0.0 if math.isnan(s) else s for s in scores.values()) / len(scores)}


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Writes all that resuming needs into one file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restores model and optimizer and returns the state that was saved with them."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["state"]


class StopSignal:
    """Notices SIGTERM and Ctrl-C, so that training can end after its step; a second one ends the process at once."""

    def __init__(self):
        self.is_requested = False
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        self._handlers = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.is_requested = True
        signal.signal(number, signal.SIG_DFL)
