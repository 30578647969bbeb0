"""Trains QA-MDT on encoded music, from an empty folder to weights that the pipeline opens.

    accelerate launch train_qamdt.py
    accelerate launch train_qamdt.py --config configs/qamdt/mini.yaml data.latents=LATENTS run.output_dir=runs/mini

Without arguments it trains the tiny preset, on music it renders first. The same command again resumes. The run ends after
`run.max_steps` updates or `run.max_minutes` minutes; SIGTERM or Ctrl-C ends it earlier, with a checkpoint.

    output_dir/config.yaml        the settings of the run
    output_dir/loss.jsonl         the loss, a line every few updates
    output_dir/checkpoints/       what resuming needs
    output_dir/export/            averaged weights: `transformer/`, `scheduler/`, `quality_stats.json`, `training.json`
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, set_seed
from diffusers import DPMSolverMultistepScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from data_prep.encode_latents import encode_corpus
from data_prep.render_corpus import render_corpus
from qamdt.config import TrainConfig, load_config
from qamdt.cpu_memory import keep_freed_memory
from qamdt.dataset import EpochSampler, LatentDataset, collate
from qamdt.embedded import default_model_dir
from qamdt.loss import NoiseSchedule, diffusion_loss, draw, passes_of_step, select_conditions
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.shards import INDEX_NAME
from qamdt.training import (
    ExponentialAverage,
    build_optimizers,
    find_checkpoint,
    learning_rate_factor,
    load_checkpoint,
    save_checkpoint,
)


def train(config: TrainConfig, stop: "StopSignal") -> dict:
    """Runs the training and returns its last state.

    Args:
        config: The settings of the run.
        stop: Looked at after every update; once it is requested, the run saves and ends.
    """
    run = config.run
    output_dir = Path(run.output_dir)
    # A full pass leaves the side interpolator without gradients, which DDP must be told.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=config.loss.passes in ("full", "alternate"))
    # Without `cpu=True`, processes that torchrun started on a machine without a GPU would not find each other.
    is_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=is_cpu, mixed_precision=run.mixed_precision, kwargs_handlers=[ddp])
    if is_cpu:
        keep_freed_memory()
    set_seed(run.seed)

    # Data.
    dataset = LatentDataset(config.data, seed=run.seed)
    say(
        accelerator,
        f"{len(dataset)} clips in {config.data.latents} ({dataset.num_short_clips} are shorter than a crop).",
    )

    # Model, optimizers, averaged weights.
    model = QAMDTTransformer2DModel(**config.model)
    if run.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if run.compile:
        model.compile_repeated_blocks()
    model.train()
    grid_size = model.patch_embed.grid_size((config.data.crop_in_frames, model.config.sample_size[1]))
    optimizers = build_optimizers(model, config.optim)
    peak_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    transformer, *optimizers = accelerator.prepare(model, *optimizers)
    average = ExponentialAverage(model, config.optim.ema_decay)
    schedule = NoiseSchedule(config.loss).to(accelerator.device)
    say(
        accelerator, f"{count_parameters(model) / 1e6:.2f} M parameters, {grid_size[0] * grid_size[1]} patches a crop."
    )

    # Resume.
    state = {"step": 0, "samples": 0, "minutes": 0.0, "scaling_factor": dataset.scaling_factor}
    checkpoint, faults = find_checkpoint(output_dir / "checkpoints")
    for fault in faults:
        say(accelerator, fault)
    if checkpoint is not None:
        state = load_checkpoint(accelerator, average, checkpoint)
        say(accelerator, f"Resuming from {checkpoint}.")
        if state["scaling_factor"] != dataset.scaling_factor:
            raise ValueError(
                f"the run was started with latents scaled by {state['scaling_factor']}, now `data.latents` says "
                f"{dataset.scaling_factor}; set `data.scaling_factor` to the former or start a new `run.output_dir`."
            )
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "config.yaml").write_text(format_config(config))
        cut_loss_file(output_dir / "loss.jsonl", state["step"])
    sampler = EpochSampler(
        len(dataset),
        batch_size=run.batch_size,
        seed=run.seed,
        start=state["samples"],
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
    )
    batches = iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=config.data.num_workers))

    # Train.
    clock = Clock(state["minutes"])
    saved_at, saved_step = state["minutes"], state["step"] if checkpoint else None
    logged: list[torch.Tensor] = []
    log_start, log_samples = time.monotonic(), state["samples"]
    progress_bar = tqdm(
        total=run.max_steps, initial=state["step"], disable=not accelerator.is_main_process, unit="step"
    )
    while True:
        state["minutes"], is_stopping = agree(accelerator, clock.minutes(), stop.is_requested)
        progress = run_progress(config, state["step"], state["minutes"])
        if progress >= 1 or is_stopping:
            break
        factor = learning_rate_factor(config.optim, state["step"], progress)
        for optimizer, rates in zip(optimizers, peak_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

        # Forward and backward, each micro-batch through the full network, the masked one, or both.
        passes = passes_of_step(config.loss, state["step"])
        share = 1 / (len(passes) * run.gradient_accumulation_steps)
        for micro_step in range(run.gradient_accumulation_steps):
            batch = select_conditions(next(batches).to(accelerator.device), model.config)
            draws = draw(batch, grid_size[0] * grid_size[1], config.loss)
            for number, is_masked in enumerate(passes):
                is_last = micro_step == run.gradient_accumulation_steps - 1 and number == len(passes) - 1
                with attention_kernel(accelerator), sync_gradients(accelerator, transformer, is_last):
                    loss = diffusion_loss(transformer, batch, draws, schedule, config.loss, is_masked=is_masked)
                    accelerator.backward(loss * share)
                logged.append(loss.detach())

        # Update.
        grad_norm = accelerator.clip_grad_norm_(transformer.parameters(), config.optim.max_grad_norm)
        if not torch.isfinite(grad_norm):
            raise RuntimeError(
                f"the gradient is not finite after {state['step']} updates (loss {loss.item()}); "
                "lower `optim.learning_rate` and run again: the run resumes from its last checkpoint."
            )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state["step"] += 1
        state["samples"] += run.batch_size * run.gradient_accumulation_steps * accelerator.num_processes
        average.update(model, state["step"])
        progress_bar.update()

        # Log and save.
        if state["step"] % run.log_steps == 0:
            clips_per_s = (state["samples"] - log_samples) / (time.monotonic() - log_start)
            line = {
                "step": state["step"],
                "minutes": round(state["minutes"], 3),
                "epoch": round(state["samples"] / len(dataset), 3),
                "loss": accelerator.gather(torch.stack(logged)).mean().item(),
                "grad_norm": grad_norm.item(),
                "learning_rate": peak_rates[-1][0] * factor,
                "clips_per_s": round(clips_per_s, 2),
            }
            if accelerator.is_main_process:
                with (output_dir / "loss.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
            progress_bar.set_postfix(loss=f"{line['loss']:.4f}", clips_per_s=f"{clips_per_s:.1f}")
            logged, log_start, log_samples = [], time.monotonic(), state["samples"]
        is_due = state["minutes"] - saved_at >= run.checkpoint_minutes
        if is_due or (run.checkpoint_steps is not None and state["step"] % run.checkpoint_steps == 0):
            save(accelerator, average, state, config, dataset)
            saved_at, saved_step = state["minutes"], state["step"]
    progress_bar.close()

    if state["step"] != saved_step:
        save(accelerator, average, state, config, dataset)
    say(
        accelerator,
        f"Stopped after {state['step']} steps and {state['minutes']:.1f} minutes; weights in {output_dir / 'export'}.",
    )
    return state


def render_latents(folder: Path, num_pieces: int) -> None:
    """Makes a small corpus and encodes it with the embedded autoencoder, unless that was done before."""
    print(
        f"There are no latents in {folder}: composing, rendering and encoding {num_pieces} pieces first.",
        file=sys.stderr,
    )
    manifest = render_corpus(folder.parent / "corpus", num_pieces=num_pieces)
    encode_corpus(manifest, default_model_dir() / "vae", folder)


def save(
    accelerator: Accelerator, average: ExponentialAverage, state: dict, config: TrainConfig, dataset: LatentDataset
) -> None:
    """Writes a checkpoint and exports the averaged weights."""
    output_dir = Path(config.run.output_dir)
    save_checkpoint(
        accelerator, average, state, output_dir / "checkpoints", num_checkpoints=config.run.num_checkpoints
    )
    if accelerator.is_main_process:
        export(average, state, config, dataset, output_dir / "export")


def export(
    average: ExponentialAverage, state: dict, config: TrainConfig, dataset: LatentDataset, folder: Path
) -> None:
    """Writes the folder of averaged weights that `QAMDTTransformer2DModel.from_pretrained` opens, all at once."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    transformer = QAMDTTransformer2DModel(**config.model)
    average.copy_to(transformer)
    transformer.save_pretrained(temporary / "transformer")
    DPMSolverMultistepScheduler(
        num_train_timesteps=config.loss.num_train_timesteps,
        beta_start=config.loss.beta_start,
        beta_end=config.loss.beta_end,
        beta_schedule="scaled_linear",
        prediction_type=config.loss.prediction_type,
    ).save_pretrained(temporary / "scheduler")
    if dataset.stats is not None:
        dataset.stats.save(temporary / "quality_stats.json")
    (temporary / "training.json").write_text(json.dumps(state, indent=2) + "\n")
    (temporary / "config.yaml").write_text(format_config(config))

    # A folder cannot replace another in one step, so for a moment there is none.
    outdated = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(outdated, ignore_errors=True)
    if folder.exists():
        os.replace(folder, outdated)
    os.replace(temporary, folder)
    shutil.rmtree(outdated, ignore_errors=True)


def attention_kernel(accelerator: Accelerator) -> contextlib.AbstractContextManager:
    """Returns the context that attention runs in.

    On a CPU in bf16 the fused kernel's backward pass is so slow that plain matrix products, which are not fused, make
    the whole step 1.4 times faster at a few hundred tokens.
    """
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # holds for CPU as well: products stay in bf16
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


def sync_gradients(
    accelerator: Accelerator, transformer: torch.nn.Module, is_last: bool
) -> contextlib.AbstractContextManager:
    """Returns the context in which processes exchange gradients, if this pass is the last before the update."""
    return contextlib.nullcontext() if is_last else accelerator.no_sync(transformer)


class Clock:
    """Minutes of training, counted on from those of earlier runs."""

    def __init__(self, minutes_before: float):
        self._start = time.monotonic() - 60 * minutes_before

    def minutes(self) -> float:
        return (time.monotonic() - self._start) / 60


class StopSignal:
    """Notices SIGTERM and Ctrl-C, so that the loop can end after its step; a second one ends the process at once."""

    def __init__(self):
        self.is_requested = False
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        self._handlers = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.is_requested = True
        signal.signal(number, signal.SIG_DFL)


def run_progress(config: TrainConfig, step: int, minutes: float) -> float:
    """Returns how much of a run is done, from 0 to 1."""
    by_steps = step / config.run.max_steps if config.run.max_steps else 0.0
    by_minutes = minutes / config.run.max_minutes if config.run.max_minutes else 0.0
    return max(by_steps, by_minutes)


def agree(accelerator: Accelerator, minutes: float, is_stopping: bool) -> tuple[float, bool]:
    """Returns what the first process says, so that all of them do the same although their clocks differ."""
    if accelerator.num_processes == 1:
        return minutes, is_stopping
    said = broadcast(torch.tensor([minutes, float(is_stopping)], device=accelerator.device))
    return said[0].item(), bool(said[1])


def cut_loss_file(path: Path, step: int) -> None:
    """Removes the lines after `step`, which a resumed run will write again."""
    if path.is_file():
        lines = [
            line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        path.write_text("".join(line + "\n" for line in lines))


def count_parameters(model: torch.nn.Module) -> int:
    """Returns how many weights train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def format_config(config: TrainConfig) -> str:
    """Returns the settings as YAML."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def say(accelerator: Accelerator, text: str) -> None:
    """Prints once, whatever the number of processes."""
    if accelerator.is_main_process:
        tqdm.write(text, file=sys.stderr)


def describe(config: TrainConfig) -> str:
    """Returns what `--dry-run` prints: the settings, the size of the model and the memory its training takes."""
    with torch.device("meta"):
        model = QAMDTTransformer2DModel(**config.model)
    num_parameters = count_parameters(model)
    # Weights, gradients, two moments and the average, four bytes each.
    return (
        f"{format_config(config)}\n{num_parameters / 1e6:.2f} M parameters; weights, gradients, optimizer and "
        f"averaged weights take {num_parameters * 4 * 5 / 2**30:.2f} GiB, activations come on top."
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny", help="YAML file or preset (default: tiny)")
    parser.add_argument("--dry-run", action="store_true", help="print settings, size and memory, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            print(describe(config))
            return 0
        if not (Path(config.data.latents) / INDEX_NAME).is_file() and config.data.num_pieces_to_render:
            render_latents(Path(config.data.latents), config.data.num_pieces_to_render)
        with StopSignal() as stop:
            train(config, stop)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
