"""Averaged weights: what checkpoints hold and pipelines open."""

from pathlib import Path

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS_FILE
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel


AVERAGES_FILE = "ema.safetensors"  # of adapters, whose weights have other names in the file that pipelines read


class WeightAverage:
    """Averaged weights, which move towards the present ones.

    Args:
        model: The model to follow; the weights of it that train are the first average.
    """

    def __init__(self, model: nn.Module):
        self.averages = {
            name: parameter.detach().float().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def move(self, model: nn.Module, share: float) -> None:
        """Gives the present weights this share of the average."""
        weights = [parameter.detach().float() for parameter in model.parameters() if parameter.requires_grad]
        torch._foreach_lerp_(list(self.averages.values()), weights, share)

    def gather(self) -> dict[str, torch.Tensor]:
        """Returns whole averages, also where FSDP has spread them; every process must call it."""
        return {
            name: average.full_tensor() if isinstance(average, DTensor) else average
            for name, average in self.averages.items()
        }

    def fill(self, averages: dict[str, torch.Tensor]) -> None:
        """Takes over what `gather` returned."""
        for name, average in self.averages.items():
            value = averages[name].to(average.device)
            if isinstance(average, DTensor):
                value = distribute_tensor(value, average.device_mesh, average.placements)
            average.copy_(value)


class ExponentialAverage(WeightAverage):
    """An exponential moving average whose decay rises towards its final value at the start.

    Args:
        model: The model to follow.
        decay: Decay per update.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after update number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        self.move(model, 1 - decay)

    def load(self, checkpoint: Path) -> None:
        """Reads the averages that `save_weights` wrote into a checkpoint."""
        path = checkpoint / "transformer" / WEIGHTS_FILE
        self.fill(load_file(path if path.is_file() else checkpoint / AVERAGES_FILE))


def save_weights(model: QAMDTTransformer2DModel, averages: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes averaged weights: the folder `transformer` of a whole network, or only its adapter.

    Args:
        model: The network that trains.
        averages: What `ExponentialAverage.gather` returned.
        folder: Folder to write to.
    """
    averages = {name: average.cpu().contiguous() for name, average in averages.items()}
    if not hasattr(model, "peft_config"):
        (folder / "transformer").mkdir()
        model.save_config(folder / "transformer")
        save_file(averages, folder / "transformer" / WEIGHTS_FILE, metadata={"format": "pt"})
        return
    save_file(averages, folder / AVERAGES_FILE)
