"""The training loop that the autoencoder and the vocoder share: random crops of clips in, one loss out.

Everything random in a step is drawn from a generator seeded by `(seed, step, process)`, so a run that was killed
continues from its last checkpoint with the very crops that it would have seen.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from qamdt.audio import SAMPLING_RATE, read_audio
from qamdt.files import append_json_line, claim_folder, cut_log, write_atomically
from qamdt.keyed_rows import digest_weights, make_key
from qamdt.manifest import Record, clip_identity, resolve_clip_path, scan_manifest
from qamdt.outputs import check_output_folder
from qamdt.run_control import forget_earlier_runs
from qamdt.settings import hold_folder_to


# What may differ when a run goes on: where things lie, how long it lasts, and what it started from.
_FREE_OPTIONS = ("output_dir", "manifest", "num_steps", "max_minutes", "init")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How long and how fast to train.

    Args:
        output_dir: Receives the checkpoint, the loss log and the model folder.
        num_steps: Length of the schedule: linear warm-up, a constant rate, cosine decay to zero.
        learning_rate: Peak learning rate of AdamW.
        num_warmup_steps: Steps of linear warm-up.
        decay_share: Share of the steps over which the rate decays.
        average_decay: Decay of the average of the weights that is exported; `None` exports the weights themselves.
        checkpoint_minutes: Minutes between checkpoints.
        max_minutes: Stop, with a checkpoint, after this many minutes; the next run goes on from there.
        seed: Seed of everything random.
    """

    output_dir: Path
    num_steps: int
    learning_rate: float
    num_warmup_steps: int = 100
    decay_share: float = 1.0
    average_decay: float | None = None
    checkpoint_minutes: float = 3.0
    max_minutes: float = math.inf
    seed: int = 0


class RandomCrops:
    """Draws batches of random crops from the clips of a manifest.

    Args:
        manifest: Path of the manifest.
        batch_size: Crops per batch.
        crop_in_s: Length of a crop in seconds; shorter clips are passed over.
        split: Which value of the clips' `split` tag to read; clips without the tag belong to `"train"`.

    Attributes:
        key: Stands for the sound of the clips.
    """

    def __init__(self, manifest: Path, batch_size: int, crop_in_s: float, split: str = "train"):
        self.manifest = Path(manifest)
        self.batch_size = batch_size
        self.crop_in_s = crop_in_s
        lines = list(scan_manifest(manifest))
        for line in lines:
            if line.record is None:
                tqdm.write(f"{manifest}, line {line.number} is passed over: {line.fault}", file=sys.stderr)
        self.records: list[Record] = [
            line.record
            for line in lines
            if line.record is not None
            and line.record.tags.get("split", "train") == split
            and line.record.duration_in_s >= crop_in_s
        ]
        self._unreadable: set[str] = set()
        if not self.records:
            raise ValueError(f"`manifest` {str(manifest)!r} has no {split!r} clip of {crop_in_s} s or more.")
        # Without the times of change: the same corpus may have been rendered again, on another machine.
        clips = [clip_identity(manifest, record) for record in self.records]
        self.key = make_key([[path, file and file[0], *span] for path, file, *span in clips])

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Returns waveforms of shape `(batch, samples)`."""
        choices = torch.randint(len(self.records), (self.batch_size,), generator=generator).tolist()
        positions = torch.rand(self.batch_size, generator=generator).tolist()
        return torch.stack(
            [self._crop_next_readable(i, position) for i, position in zip(choices, positions, strict=True)]
        )

    def _crop_next_readable(self, number: int, position: float) -> torch.Tensor:
        """Returns a crop of a clip, or of the next one that can be read; one that cannot is named once."""
        for record in (*self.records[number:], *self.records[:number]):
            if record.id in self._unreadable:
                continue
            try:
                return self._crop(record, position)
            except (ValueError, OSError) as error:
                self._unreadable.add(record.id)
                tqdm.write(f"clip {record.id!r} is passed over: {error}", file=sys.stderr)
        raise ValueError(f"no clip of {str(self.manifest)!r} can be read.")

    def _crop(self, record: Record, position: float) -> torch.Tensor:
        start_in_s = record.start_in_s + position * (record.duration_in_s - self.crop_in_s)
        num_samples = round(self.crop_in_s * SAMPLING_RATE)
        waveform = read_audio(
            resolve_clip_path(self.manifest, record), start_in_s=start_in_s, duration_in_s=self.crop_in_s
        )
        return nn.functional.pad(waveform, (0, max(0, num_samples - len(waveform))))[:num_samples]


def fit(loss_module: nn.Module, crops: RandomCrops, options: FitOptions, export: Callable[[nn.Module], None]) -> None:
    """Trains the parameters of `loss_module`, resuming from `output_dir/checkpoint.pt` when it is there.

    Args:
        loss_module: Called as `loss_module(waveforms, generator)`; returns a dict of scalars, `"loss"` among them.
        crops: Where the batches come from.
        options: Length, learning rate, checkpoints.
        export: Writes the trained model in the form that inference loads; called with each checkpoint, with the module
            whose weights to write.

    Raises:
        RuntimeError: Another process trains in the same folder.
    """
    forget_earlier_runs()
    accelerator = Accelerator()
    with claim_folder(options.output_dir, is_main_process=accelerator.is_main_process):
        _fit(loss_module, crops, options, export, accelerator)


def _fit(
    loss_module: nn.Module,
    crops: RandomCrops,
    options: FitOptions,
    export: Callable[[nn.Module], None],
    accelerator: Accelerator,
) -> None:
    """Does what `fit` says, in a folder that no other run writes to."""
    trainable = [parameter for parameter in loss_module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = _make_average(loss_module, options.average_decay)
    first_step = _load_checkpoint(options.output_dir, loss_module, optimizer, average)
    if accelerator.is_main_process:
        cut_log(options.output_dir / "losses.jsonl", "step", first_step - 1)
    loss_module, optimizer = accelerator.prepare(loss_module, optimizer)
    started = last_saved = time.monotonic()
    progress = tqdm(
        range(first_step, options.num_steps),
        initial=first_step,
        total=options.num_steps,
        disable=not accelerator.is_main_process or None,
    )
    for step in progress:
        # One step: draw, predict, update.
        generator = torch.Generator().manual_seed(_step_seed(options.seed, step, accelerator.process_index))
        waveforms = crops.draw(generator).to(accelerator.device)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _schedule(step, options)
        losses = loss_module(waveforms, generator)
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update_parameters(accelerator.unwrap_model(loss_module))

        # Log and save.
        is_last = step + 1 == options.num_steps or time.monotonic() - started > options.max_minutes * 60
        if step % 20 == 0 or is_last:
            values = {name: round(value.item(), 4) for name, value in losses.items()}
            progress.set_postfix(values)
            if accelerator.is_main_process:
                append_json_line(options.output_dir / "losses.jsonl", {"step": step, **values})
        if is_last or time.monotonic() - last_saved > options.checkpoint_minutes * 60:
            if accelerator.is_main_process:
                trained = accelerator.unwrap_model(loss_module)
                _save_checkpoint(options.output_dir, trained, optimizer, average, step + 1)
                export(trained if average is None else average.module)
            last_saved = time.monotonic()
        if is_last:
            break


def add_fit_arguments(parser: argparse.ArgumentParser, *, num_steps: int, learning_rate: float) -> None:
    """Adds the command-line options that `FitOptions` and `RandomCrops` need."""
    parser.add_argument("--manifest", type=Path, required=True, help="JSONL manifest of the clips")
    parser.add_argument("--output-dir", type=Path, required=True, help="receives checkpoint, losses and model")
    parser.add_argument("--num-steps", type=int, default=num_steps, help="length of the schedule (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="peak value (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="crops per step (%(default)s)")
    parser.add_argument("--max-minutes", type=float, default=math.inf, help="stop in time; run again to go on")
    parser.add_argument("--decay-share", type=float, default=1.0, help="of the steps, with falling rate (%(default)s)")
    parser.add_argument("--average-decay", type=float, help="export averaged weights; 0.999 averages 1000 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="run the network in bfloat16; losses stay in float32")


def fit_options(arguments: argparse.Namespace, crops: RandomCrops) -> FitOptions:
    """Reads `FitOptions` from parsed arguments and makes the output folder, or refuses one of another run."""
    is_ours = any((arguments.output_dir / name).is_file() for name in ("settings.json", "checkpoint.pt"))
    check_output_folder(arguments.output_dir, ["losses.jsonl", "vae", "vocoder", "autoencoder"], is_ours=is_ours)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    decisive = {
        name: digest_weights(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name not in _FREE_OPTIONS
    }
    hold_folder_to(
        arguments.output_dir / "settings.json",
        decisive | {"clips": f"{crops.key:016x}"},
        remedy="give another `--output-dir`, or the same settings and clips to go on",
    )
    return FitOptions(
        output_dir=arguments.output_dir,
        num_steps=arguments.num_steps,
        learning_rate=arguments.learning_rate,
        max_minutes=arguments.max_minutes,
        decay_share=arguments.decay_share,
        average_decay=arguments.average_decay,
        seed=arguments.seed,
    )


def run_command(main: Callable[[], None]) -> None:
    """Runs the command of a training; what is wrong with its arguments or its folder is said in a line."""
    try:
        main()
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        sys.exit(f"error: {error}")


def _schedule(step: int, options: FitOptions) -> float:
    warmup = (step + 1) / options.num_warmup_steps
    num_decay_steps = options.decay_share * options.num_steps
    decayed = max(0.0, 1 - (options.num_steps - step) / num_decay_steps)
    return min(warmup, 0.5 * (1 + math.cos(math.pi * decayed)))


def _make_average(loss_module: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential average of the weights that train; at first it is short, so that the beginning is soon forgotten."""
    if decay is None:
        return None

    @torch.no_grad()
    def update(averages: list[torch.Tensor], weights: list[torch.Tensor], num_averaged: int) -> None:
        share = max(1 - decay, 1 / (1 + int(num_averaged)))
        torch._foreach_lerp_(averages, weights, share)

    return AveragedModel(loss_module, multi_avg_fn=update)


def _step_seed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step) * 1009 + process


def _save_checkpoint(
    output_dir: Path,
    loss_module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    step: int,
) -> None:
    state = {"model": loss_module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    if average is not None:
        state["average"] = average.state_dict()
    write_atomically(output_dir / "checkpoint.pt", lambda file: torch.save(state, file))


def _load_checkpoint(
    output_dir: Path, loss_module: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None
) -> int:
    path = output_dir / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    loss_module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    return state["step"]
