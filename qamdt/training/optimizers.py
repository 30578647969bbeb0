"""What updates the weights, and how fast."""

import math

import torch
from torch import nn

from qamdt.precision import has_bf16_instructions
from qamdt.training.config import OptimConfig
from qamdt.training.muon import Float32Muon


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Returns AdamW over all weights that train, or Muon over the hidden matrices and AdamW over the rest.

    Only matrices of the blocks have weight decay: not biases, norms, embeddings and tables, and not the input and
    output layers. Muon orthogonalises the updates of the same matrices.
    """
    hidden, others = split_parameters(model)
    betas = (config.beta1, config.beta2)
    if config.optimizer != "muon":
        groups = [{"params": hidden, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        adamw = torch.optim.AdamW if config.optimizer == "adamw" else _eight_bit_adamw()
        return [adamw(groups, lr=config.learning_rate, betas=betas)]
    is_slow_in_bf16 = all(weight.device.type == "cpu" for weight in hidden) and not has_bf16_instructions()
    if not is_slow_in_bf16 and not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"`optim.optimizer=muon` needs PyTorch 2.9 or newer, this is {torch.__version__}.")
    muon = (Float32Muon if is_slow_in_bf16 else torch.optim.Muon)(
        hidden,
        lr=config.muon_learning_rate or config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    if not others:
        return [muon]
    return [muon, torch.optim.AdamW(others, lr=config.learning_rate, betas=betas, weight_decay=0.0)]


def _eight_bit_adamw() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            "`optim.optimizer=adamw8bit` needs the package bitsandbytes; install it with `pip install bitsandbytes`."
        ) from error
    return AdamW8bit


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Splits the weights that train into the matrices of the blocks and the rest."""
    hidden, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_in_block = "blocks." in name or name.startswith("side_interpolator.")
        is_matrix = parameter.ndim == 2 and "table" not in name
        (hidden if is_in_block and is_matrix else others).append(parameter)
    return hidden, others


def learning_rate_factor(config: OptimConfig, step: int, progress: float) -> float:
    """Returns what the peak rates are multiplied with.

    Args:
        config: Warm-up and schedule.
        step: Updates done.
        progress: How much of the run is done, 0 to 1, by steps or by minutes, whichever ends it first.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = min(progress, 1.0)
    if config.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "trapezoid":
        return warmup * min(1.0, (1 - progress) / config.decay_share)
    return warmup
