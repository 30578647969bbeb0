"""Where a run's losses and previews are shown: TensorBoard, Weights & Biases, or nowhere beside the run's own files."""

import secrets
from pathlib import Path
from typing import Any

import torch

from qamdt.files import write_text
from qamdt.training.config import TrainConfig


def start_tracker(config: TrainConfig, settings: dict[str, Any]) -> "Tracker":
    """Returns the tracker that `run.log_with` asks for.

    Args:
        config: The settings of the run.
        settings: The same as a dictionary, for trackers that show them.
    """
    folder = Path(config.run.output_dir)
    if config.run.log_with == "tensorboard":
        return TensorBoardTracker(folder / "tensorboard")
    if config.run.log_with == "wandb":
        return WandbTracker(folder, settings)
    return Tracker()


class Tracker:
    """Shows nothing."""

    def log(self, values: dict[str, float]) -> None:
        """Takes numbers by name, one of them the `step`."""

    def log_previews(self, prompts: list[str], waveforms: torch.Tensor, rate: int, picture: Path, step: int) -> None:
        """Takes what was played: waveforms `(prompts, samples)` and a picture file of their spectrograms."""

    def close(self) -> None:
        """Sends what is left."""


class TensorBoardTracker(Tracker):
    """Writes event files that `tensorboard --logdir` shows.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "`run.log_with=tensorboard` needs the package tensorboard; install it with `pip install tensorboard`."
            ) from error
        self._writer = SummaryWriter(str(folder))

    def log(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, values["step"])

    def log_previews(self, prompts: list[str], waveforms: torch.Tensor, rate: int, picture: Path, step: int) -> None:
        from matplotlib.image import imread

        for number, (prompt, waveform) in enumerate(zip(prompts, waveforms, strict=True)):
            self._writer.add_audio(f"preview/{number:02d} {prompt}", waveform.clamp(-1, 1), step, sample_rate=rate)
        self._writer.add_image("preview/spectrograms", imread(picture)[..., :3], step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbTracker(Tracker):
    """Sends to Weights & Biases, to one run for all resumptions.

    Args:
        folder: Folder of the training run; the run's name there is kept in it.
        settings: Shown with the run.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "`run.log_with=wandb` needs the package wandb; install it with `pip install wandb`."
            ) from error
        self._wandb = wandb
        id_file = folder / "wandb_id"
        if not id_file.is_file():
            write_text(id_file, secrets.token_hex(6))
        try:
            self._run = wandb.init(
                project="qamdt",
                name=folder.name,
                id=id_file.read_text(encoding="utf-8"),
                resume="allow",
                dir=str(folder),
                config=settings,
            )
        except wandb.Error as error:
            raise RuntimeError(
                f"`run.log_with=wandb` could not begin a run: {error} Log in with `wandb login`, or set WANDB_MODE=offline "
                "and send the run later with `wandb sync`."
            ) from error

    def log(self, values: dict[str, float]) -> None:
        numbers = {f"train/{name}": value for name, value in values.items() if name != "step"}
        self._run.log(numbers, step=values["step"])

    def log_previews(self, prompts: list[str], waveforms: torch.Tensor, rate: int, picture: Path, step: int) -> None:
        clips = {
            f"preview/{number:02d}": self._wandb.Audio(waveform.numpy(), sample_rate=rate, caption=prompt)
            for number, (prompt, waveform) in enumerate(zip(prompts, waveforms, strict=True))
        }
        self._run.log({**clips, "preview/spectrograms": self._wandb.Image(str(picture))}, step=step)

    def close(self) -> None:
        self._run.finish()
