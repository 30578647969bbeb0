"""What a training run needs beside the model: optimizers, learning rate, averaged weights, checkpoints."""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from qamdt.config import OptimConfig


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Returns AdamW over all weights, or Muon over the hidden matrices and AdamW over the rest.

    Only matrices of the blocks have weight decay: not biases, norms, embeddings and tables, and not the input and
    output layers. Muon orthogonalises the updates of the same matrices.
    """
    hidden, others = split_parameters(model)
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamw":
        groups = [{"params": hidden, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas)]
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"`optim.optimizer=muon` needs PyTorch 2.9 or newer, this is {torch.__version__}.")
    muon = torch.optim.Muon(
        hidden,
        lr=config.muon_learning_rate or config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, torch.optim.AdamW(others, lr=config.learning_rate, betas=betas, weight_decay=0.0)]


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


class ExponentialAverage:
    """Averaged weights: an exponential moving average whose decay rises towards its final value at the start.

    Args:
        model: The model to follow; its weights are the first average.
        decay: Decay per update.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.averages = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after update number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [parameter.detach().float() for parameter in model.parameters()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrites the weights of `model` by the averages."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.averages[name])

    def save(self, path: Path) -> None:
        """Writes the averages to a safetensors file."""
        save_file(self.averages, path)

    def load(self, path: Path) -> None:
        """Reads the averages that `save` wrote."""
        averages = load_file(path)
        for name, average in self.averages.items():
            average.copy_(averages[name])


def save_checkpoint(
    accelerator: Accelerator, average: ExponentialAverage, state: dict, folder: Path, *, num_checkpoints: int
) -> Path:
    """Writes all that resuming needs to `folder/step-…` and removes the oldest checkpoints.

    The files go to a temporary folder that is renamed once it is whole, with a digest of each of them in `state.json`.

    Args:
        accelerator: Holds model, optimizers and the state of the random generators.
        average: The averaged weights.
        state: How far the run is, at least its `step`.
        folder: Folder of the checkpoints.
        num_checkpoints: How many to keep.
    """
    target = folder / f"step-{state['step']:08d}"
    temporary = folder / f".{target.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    if accelerator.is_main_process:
        average.save(temporary / "ema.safetensors")
        digests = {
            str(file.relative_to(temporary)): _digest(file) for file in sorted(temporary.rglob("*")) if file.is_file()
        }
        (temporary / "state.json").write_text(json.dumps({**state, "sha256": digests}, indent=2) + "\n")
        for file in temporary.rglob("*"):
            _flush_to_disk(file)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        _flush_to_disk(folder)
        for outdated in list_checkpoints(folder)[num_checkpoints:]:
            shutil.rmtree(outdated)
    accelerator.wait_for_everyone()
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-[0-9]*"), reverse=True)


def find_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Returns the newest checkpoint that is whole, and what is wrong with each newer one."""
    faults = []
    for checkpoint in list_checkpoints(folder):
        fault = _find_fault(checkpoint)
        if fault is None:
            return checkpoint, faults
        faults.append(f"{checkpoint} is damaged and passed over: {fault}.")
    return None, faults


def load_checkpoint(accelerator: Accelerator, average: ExponentialAverage, checkpoint: Path) -> dict:
    """Restores model, optimizers, random generators and averages, and returns the state that was saved with them."""
    accelerator.load_state(str(checkpoint))
    average.load(checkpoint / "ema.safetensors")
    state = json.loads((checkpoint / "state.json").read_text())
    return {key: value for key, value in state.items() if key != "sha256"}


def _find_fault(checkpoint: Path) -> str | None:
    try:
        digests = json.loads((checkpoint / "state.json").read_text())["sha256"]
        for name, digest in digests.items():
            if _digest(checkpoint / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that a power cut after the rename loses nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
