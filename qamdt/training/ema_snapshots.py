"""Averages that a run keeps beside the exported one, so that an average of any length can be made after the training.

How long weights are best averaged shows only in the end, and an exponential average has one length. So a run with
`optim.ema_snapshot_lengths` keeps power-function averages too, which grow with it: after t updates, update k has a weight
in proportion to (k / t) ** power, and the spread of these weights is the same share of t at any t. That share is called
length here and sigma_rel in the paper (Karras et al. 2024, section 3.1). `qamdt.training.post_hoc_ema` combines the snapshots.

    output_dir/ema_snapshots/step-00001000-length-0.05.safetensors    a snapshot, in float16; all are kept
    output_dir/checkpoints/step-…/resume/power_averages.safetensors   the averages, in float32, to resume exactly
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from qamdt.files import flush_to_disk, write_atomically
from qamdt.training.averages import WeightAverage
from qamdt.training.checkpoints import RESUME_FOLDER, resume_folder
from qamdt.training.config import OptimConfig


SNAPSHOT_FOLDER = "ema_snapshots"
POWER_AVERAGES_FILE = "power_averages.safetensors"


def power_of_length(length: float) -> float:
    """Returns the exponent of the power-function average of a length (Karras et al. 2024, algorithm 2)."""
    # The largest root of length ** 2 == (power + 1) / ((power + 2) ** 2 * (power + 3)), written as a cubic.
    return float(np.roots([1, 7, 16 - length**-2, 12 - length**-2]).real.max())


class PowerAverage(WeightAverage):
    """A power-function average (Karras et al. 2024, equation 127); the first update replaces what it began with.

    Args:
        model: The model to follow.
        length: Spread of the averaged updates, as a share of the training so far.
    """

    def __init__(self, model: nn.Module, length: float):
        super().__init__(model)
        self.power = power_of_length(length)

    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after update number `step`."""
        self.move(model, 1 - (1 - 1 / step) ** (self.power + 1))


class SnapshotAverages:
    """The power-function averages of a run, and the snapshots that it writes of them.

    Args:
        model: The model to follow.
        config: The lengths, and how often snapshots are written.
        folder: Folder of the snapshots.
        is_main_process: Whether this process is the one that writes.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, folder: Path, *, is_main_process: bool = True):
        self.averages = {length: PowerAverage(model, length) for length in config.ema_snapshot_lengths or []}
        self.num_steps = config.ema_snapshot_steps
        self.folder = folder
        self.is_main_process = is_main_process
        self.run_digest = ""  # of the weights after the first update, which tells runs apart

    def update(self, model: nn.Module, step: int) -> None:
        """Moves the averages towards the weights after update number `step`, and writes snapshots if they are due."""
        for average in self.averages.values():
            average.update(model, step)
            if step == 1:
                self.run_digest = _digest(average.gather())
        if step % self.num_steps == 0:
            self.write(step)

    def write(self, step: int) -> None:
        """Writes a snapshot of each average; every process must call it."""
        for length, average in self.averages.items():
            weights = average.gather()
            if self.is_main_process:
                _write_snapshot(self.folder, weights, step=step, length=length, run_digest=self.run_digest)

    def gather(self) -> dict[str, torch.Tensor]:
        """Returns all averages whole, for `save`; every process must call it."""
        return {
            f"{length}/{name}": value
            for length, average in self.averages.items()
            for name, value in average.gather().items()
        }

    def save(self, averages: dict[str, torch.Tensor], checkpoint: Path) -> None:
        """Adds to a checkpoint what `gather` returned."""
        if averages:
            averages = {name: value.cpu().contiguous() for name, value in averages.items()}
            path = checkpoint / RESUME_FOLDER / POWER_AVERAGES_FILE
            save_file(averages, path, metadata={"run_digest": self.run_digest})

    def load(self, checkpoint: Path) -> None:
        """Reads the averages that `save` added to a checkpoint."""
        if not self.averages:
            return
        path = resume_folder(checkpoint) / POWER_AVERAGES_FILE
        saved = load_file(path) if path.is_file() else {}
        saved_lengths = sorted({float(name.partition("/")[0]) for name in saved})
        if not self.averages.keys() <= set(saved_lengths):
            raise ValueError(
                f"`optim.ema_snapshot_lengths` is {list(self.averages)}, but {checkpoint} has averages of the lengths "
                f"{saved_lengths}, and a new one must begin with the run; set it to those, or to null if there are "
                "none, or start a new `run.output_dir`."
            )
        for length, average in self.averages.items():
            average.fill({name: saved[f"{length}/{name}"] for name in average.averages})
        with safe_open(path, framework="pt") as file:
            self.run_digest = file.metadata()["run_digest"]


def cut_snapshots(folder: Path, step: int) -> None:
    """Removes the snapshots after `step`, which a resumed run will write again, and any that a kill left unfinished."""
    for path in folder.glob("step-*.safetensors"):
        if int(path.name.split("-")[1]) > step:
            path.unlink()
    # Ours, and those that safetensors writes first and then renames.
    for path in (*folder.glob(".step-*.tmp"), *folder.glob(".tmp*")):
        path.unlink()


def _write_snapshot(
    folder: Path, weights: dict[str, torch.Tensor], *, step: int, length: float, run_digest: str
) -> None:
    halves = {name: value.to("cpu", torch.float16).contiguous() for name, value in weights.items()}
    # One entry: several would be written in an order that changes from call to call.
    metadata = {"snapshot": json.dumps({"step": step, "length": length, "run_digest": run_digest})}

    def write(file: Path) -> None:
        save_file(halves, file, metadata)
        flush_to_disk(file)

    # On the disk before a checkpoint of this step can be, as from there on nothing would write it again.
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"step-{step:08d}-length-{length}.safetensors", write)
    flush_to_disk(folder)


def _digest(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for weight in weights.values():
        digest.update(weight.cpu().numpy().tobytes())
    return digest.hexdigest()
