"""Trains QA-MDT on encoded music, from an empty folder to weights that the pipeline opens.

    accelerate launch train_qamdt.py
    accelerate launch train_qamdt.py --config configs/qamdt/small.yaml data.manifest=music/manifest.jsonl
    accelerate launch train_qamdt.py --config configs/qamdt/lora.yaml data.manifest=music/manifest.jsonl lora.rank=16

Without arguments it trains the tiny preset, on the corpus that ships with the project. The same command again resumes.
The run ends after `run.max_steps` updates or `run.max_minutes` minutes; SIGTERM or Ctrl-C ends it earlier, with a
checkpoint. `--dry-run` prints the settings, and what a run takes of memory and time.

    output_dir/config.yaml        the settings of the run
    output_dir/loss.jsonl         the loss, a line every few updates
    output_dir/checkpoints/       what resuming needs, and in each a model that `QAMDTPipeline.from_pretrained` opens
    output_dir/export/            the model of the newest checkpoint alone
    output_dir/previews/          what the model plays along the way, if `preview.prompts` asks for that
    output_dir/ema_snapshots/     what `qamdt.training.post_hoc_ema` averages, if `optim.ema_snapshot_lengths` asks for that
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm import tqdm

from data_prep.text_costs import describe_text_costs
from data_prep.training_latents import find_latents, load_online_texts
from pipelines.checkpoint_model import check_autoencoder, render_previews, save_components, save_lora
from pipelines.spectrogram import check_matplotlib
from qamdt.files import append_json_line, claim_folder, cut_log, replace_folder, write_json, write_text
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.outputs import check_output_folder, is_readable_by
from qamdt.run_control import Clock, StopSignal, agree, peak_memory_in_gib, run_progress
from qamdt.settings import format_settings, load_settings
from qamdt.training.averages import ExponentialAverage, save_weights
from qamdt.training.checkpoints import (
    NOT_OF_THE_MODEL,
    find_checkpoint,
    link_tree,
    list_checkpoints,
    load_resume,
    read_state,
    save_checkpoint,
    set_aside,
)
from qamdt.training.config import TrainConfig, load_config
from qamdt.training.dataset import LatentDataset, collate
from qamdt.training.ema_snapshots import SNAPSHOT_FOLDER, SnapshotAverages, cut_snapshots
from qamdt.training.launch import attention_kernel, choose_precision, make_accelerator, prepare
from qamdt.training.loss import NoiseSchedule, diffusion_loss, draw, make_scheduler, passes_of_step
from qamdt.training.network import build_model, check_fit
from qamdt.training.optimizers import build_optimizers, learning_rate_factor
from qamdt.training.resumption import check_same_run, describe_data
from qamdt.training.run_estimate import describe_run
from qamdt.training.sampling import EpochSampler
from qamdt.training.tracking import Tracker, start_tracker


OUTPUTS = ("config.yaml", "loss.jsonl", "checkpoints", "components", "export", "previews", SNAPSHOT_FOLDER)


def train(config: TrainConfig, stop: StopSignal) -> dict:
    """Runs the training and returns its last state.

    Args:
        config: The settings of the run.
        stop: Looked at after every update; once it is requested, the run saves and ends.
    """
    config, reason = choose_precision(config)
    accelerator = make_accelerator(config)
    say(accelerator, f"Precision: {config.run.mixed_precision}, {reason}.")
    output_dir = Path(config.run.output_dir)
    check_run_folder(output_dir)
    with claim_folder(output_dir, is_main_process=accelerator.is_main_process):
        return train_model(config, accelerator, stop)


def check_run_folder(output_dir: Path) -> None:
    """Refuses a folder in which something lies that the run would replace and that no run has written."""
    is_ours = is_readable_by(partial(load_settings, TrainConfig), output_dir / "config.yaml")
    is_ours = is_ours or bool(list_checkpoints(output_dir / "checkpoints"))
    check_output_folder(output_dir, OUTPUTS, is_ours=is_ours)


def train_model(config: TrainConfig, accelerator: Accelerator, stop: StopSignal) -> dict:
    """Does what `train` says, with the processes and the folder that it has prepared."""
    run = config.run
    output_dir = Path(run.output_dir)
    set_seed(run.seed)

    # Data.
    dataset = LatentDataset(config.data, seed=run.seed)
    say(
        accelerator,
        f"{len(dataset)} clips in {config.data.latents} ({dataset.num_short_clips} are shorter than a crop).",
    )

    # Model, optimizers, averaged weights.
    model = build_model(config)
    check_fit(dataset.index, model)
    if run.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if run.compile:
        # Blocks are compiled for each kind of call (with skips, with positions, for hidden patches), not for each length
        # of crop, text or mask. By default PyTorch gives up at the ninth kind and runs that one uncompiled.
        torch._dynamo.config.recompile_limit = 32
        model.compile_repeated_blocks(dynamic=True)
    model.train()
    optimizers = build_optimizers(model, config.optim)
    peak_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    transformer, optimizers = prepare(accelerator, model, optimizers, run.mixed_precision)
    average = ExponentialAverage(model, config.optim.ema_decay)
    snapshots = SnapshotAverages(
        model, config.optim, output_dir / SNAPSHOT_FOLDER, is_main_process=accelerator.is_main_process
    )
    schedule = NoiseSchedule(config.loss).to(accelerator.device)
    say(accelerator, f"{count_trained(model) / 1e6:.2f} M parameters train.")

    # Resume.
    state = {"step": 0, "taken": None, "minutes": 0.0, "scaling_factor": dataset.scaling_factor, "losses": []}
    checkpoint = choose_checkpoint(accelerator, output_dir / "checkpoints")
    if checkpoint is not None:
        changes = check_same_run(checkpoint, read_state(checkpoint), config, dataset)
        state = load_checkpoint(accelerator, average, snapshots, checkpoint, config)
        say(accelerator, f"Resuming from {checkpoint}.")
        if changes is not None:
            say(accelerator, changes)
    state["data"] = describe_data(dataset)
    if accelerator.is_main_process:
        prepare_output(config, dataset, model, state["step"])
    sampler = EpochSampler(
        dataset.buckets(),
        batch_size=run.batch_size,
        seed=run.seed,
        weights=dataset.weights(),
        shards=dataset.shards(),
        window_in_shards=config.data.window_in_shards,
        taken=state["taken"],
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
    )
    state["taken"] = list(sampler.taken)
    is_online = config.data.text == "online"
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=list if is_online else collate,
        num_workers=config.data.num_workers,
        generator=torch.Generator(),  # so that starting workers draws nothing from the run's own generator
    )
    batches = iter(loader)
    if is_online:
        texts = load_online_texts(dataset.folder, accelerator.device)
        batches = (collate(texts.fill(samples)) for samples in batches)
    tracker = start_tracker(config, dataclasses.asdict(config)) if accelerator.is_main_process else Tracker()

    # Train.
    clock = Clock(state["minutes"])
    saved_at, saved_step = state["minutes"], state["step"] if checkpoint else None
    losses = [torch.tensor(loss, device=accelerator.device) for loss in state["losses"]]  # since the last logged line
    log_start, log_samples = time.monotonic(), sum(state["taken"])
    progress_bar = tqdm(
        total=run.max_steps, initial=state["step"], disable=not accelerator.is_main_process or None, unit="step"
    )
    while True:
        state["minutes"], is_stopping = agree(accelerator, clock.minutes(), stop.is_requested)
        progress = run_progress(run, state["step"], state["minutes"])
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
            batch = next(batches).to(accelerator.device)
            state["taken"] = sampler.advance(state["taken"])
            num_patches = math.prod(model.patch_embed.grid_size(batch.latents.shape[2:]))
            draws = draw(batch, num_patches, config.loss, mask_seed=run.seed + state["step"])
            for number, is_masked in enumerate(passes):
                is_last = micro_step == run.gradient_accumulation_steps - 1 and number == len(passes) - 1
                with (
                    attention_kernel(accelerator.device, run.mixed_precision),
                    sync_gradients(accelerator, transformer, is_last),
                ):
                    loss = diffusion_loss(
                        transformer,
                        batch,
                        draws,
                        schedule,
                        config.loss,
                        model_config=model.config,
                        is_masked=is_masked,
                    )
                    accelerator.backward(loss * share)
                losses.append(loss.detach())

        # Update.
        grad_norm = float(accelerator.clip_grad_norm_(transformer.parameters(), config.optim.max_grad_norm))
        # In fp16 gradients may overflow now and then; the scaler leaves such updates out.
        if not math.isfinite(grad_norm) and accelerator.scaler is None:
            raise RuntimeError(
                f"the gradient is not finite after {state['step']} updates (loss {loss.item()}); "
                "lower `optim.learning_rate` and run again: the run resumes from its last checkpoint."
            )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state["step"] += 1
        average.update(model, state["step"])
        snapshots.update(model, state["step"])
        progress_bar.update()

        # Log, save and listen.
        if state["step"] % run.log_steps == 0:
            num_samples = sum(state["taken"])
            line = {
                "step": state["step"],
                "minutes": round(state["minutes"], 3),
                "epoch": round(num_samples / len(dataset), 3),
                "loss": accelerator.gather(torch.stack(losses)).mean().item(),
                "grad_norm": grad_norm,
                "learning_rate": peak_rates[-1][0] * factor,
                "clips_per_s": float(f"{(num_samples - log_samples) / (time.monotonic() - log_start):.4g}"),
                "peak_memory_gib": peak_memory_in_gib(accelerator.device),
            }
            if accelerator.is_main_process:
                append_json_line(output_dir / "loss.jsonl", line)
            tracker.log(line)
            progress_bar.set_postfix(loss=f"{line['loss']:.4f}", clips_per_s=line["clips_per_s"])
            losses, log_start, log_samples = [], time.monotonic(), num_samples
        is_preview = bool(config.preview.prompts) and state["step"] % config.preview.steps == 0
        is_due = state["minutes"] - saved_at >= run.checkpoint_minutes
        if is_due or is_preview or (run.checkpoint_steps is not None and state["step"] % run.checkpoint_steps == 0):
            losses_so_far = mean_over_ranks(accelerator, losses)
            save(accelerator, model, average, snapshots, {**state, "losses": losses_so_far}, config)
            saved_at, saved_step = state["minutes"], state["step"]
        if is_preview:
            preview(accelerator, config, state["step"], tracker)
    progress_bar.close()

    if progress >= 1 and state["step"] % config.optim.ema_snapshot_steps:
        snapshots.write(state["step"])
    if state["step"] != saved_step:
        losses_so_far = mean_over_ranks(accelerator, losses)
        save(accelerator, model, average, snapshots, {**state, "losses": losses_so_far}, config)
    tracker.close()
    say(
        accelerator,
        f"Stopped after {state['step']} steps and {state['minutes']:.1f} minutes; weights in {output_dir / 'export'}.",
    )
    return state


def choose_checkpoint(accelerator: Accelerator, folder: Path) -> Path | None:
    """Returns the newest whole checkpoint; newer ones that are damaged are named and set aside."""
    checkpoint, damaged, faults = find_checkpoint(folder)
    accelerator.wait_for_everyone()
    for fault in faults:
        say(accelerator, fault)
    if accelerator.is_main_process:
        for damaged_checkpoint in damaged:
            set_aside(damaged_checkpoint)
    accelerator.wait_for_everyone()
    return checkpoint


def load_checkpoint(
    accelerator: Accelerator,
    average: ExponentialAverage,
    snapshots: SnapshotAverages,
    checkpoint: Path,
    config: TrainConfig,
) -> dict:
    """Restores model, optimizers, random generators and averages, and returns the state that was saved with them."""
    load_resume(accelerator, checkpoint, strict=config.lora is None)
    average.load(checkpoint)
    snapshots.load(checkpoint)
    state = read_state(checkpoint)
    if "samples" in state:  # of a run that knew one length of crops alone
        state["taken"] = [state.pop("samples")]
    return {"losses": [], **state}


def prepare_output(config: TrainConfig, dataset: LatentDataset, model: QAMDTTransformer2DModel, step: int) -> None:
    """Writes what the run's folder holds from the beginning: its settings, and the parts that checkpoints share."""
    if config.preview.prompts:
        check_matplotlib("`preview.prompts`")
    output_dir = Path(config.run.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / "config.yaml", format_settings(config))
    cut_log(output_dir / "loss.jsonl", "step", step)
    cut_snapshots(output_dir / SNAPSHOT_FOLDER, step)
    components = output_dir / ".components.tmp"
    shutil.rmtree(components, ignore_errors=True)
    components.mkdir()
    scheduler, stats = make_scheduler(config.loss), dataset.stats
    if config.run.pipeline is None or config.lora is not None:
        scheduler.save_pretrained(components / "scheduler")
    if config.run.pipeline is not None:
        check_autoencoder(config.run.pipeline, dataset.folder)
    if config.run.pipeline is not None and config.lora is None:
        save_components(
            config.run.pipeline,
            components,
            name=output_dir.resolve().name,
            transformer=model,
            scheduler=scheduler,
            scaling_factor=dataset.scaling_factor,
            quality_stats=None if stats is None else stats.to_dict(),
        )
    if stats is not None:
        stats.save(components / "quality_stats.json")
    shutil.copyfile(output_dir / "config.yaml", components / "config.yaml")
    replace_folder(components, output_dir / "components")


def save(
    accelerator: Accelerator,
    model: QAMDTTransformer2DModel,
    average: ExponentialAverage,
    snapshots: SnapshotAverages,
    state: dict,
    config: TrainConfig,
) -> None:
    """Writes a checkpoint, and the model in it once more as `export`."""
    output_dir = Path(config.run.output_dir)
    averages, snapshot_averages = average.gather(), snapshots.gather()

    def write_model(folder: Path) -> None:
        link_tree(output_dir / "components", folder)
        save_weights(model, averages, folder)
        if config.lora is not None:
            save_lora(model, averages, folder)
        snapshots.save(snapshot_averages, folder)
        write_json(folder / "training.json", state)

    checkpoint = save_checkpoint(
        accelerator,
        state,
        output_dir / "checkpoints",
        num_checkpoints=config.run.num_checkpoints,
        write_model=write_model,
    )
    if accelerator.is_main_process:
        export = output_dir / ".export.tmp"
        shutil.rmtree(export, ignore_errors=True)
        link_tree(checkpoint, export, without=NOT_OF_THE_MODEL)
        replace_folder(export, output_dir / "export")


def preview(accelerator: Accelerator, config: TrainConfig, step: int, tracker: Tracker) -> None:
    """Plays the prompts with the model of the newest checkpoint, as a user would, while other processes wait."""
    if accelerator.is_main_process:
        output_dir = Path(config.run.output_dir)
        folder = output_dir / "previews" / f"step-{step:08d}"
        with torch.random.fork_rng():
            waveforms, sampling_rate = render_previews(output_dir / "export", config, folder, accelerator.device)
        tracker.log_previews(config.preview.prompts, waveforms, sampling_rate, folder / "spectrograms.png", step)
    accelerator.wait_for_everyone()


def mean_over_ranks(accelerator: Accelerator, losses: list[torch.Tensor]) -> list[float]:
    """Returns each loss, averaged over processes."""
    if not losses:
        return []
    return accelerator.gather(torch.stack(losses)).view(accelerator.num_processes, -1).mean(dim=0).tolist()


def prepare_latents(config: TrainConfig) -> TrainConfig:
    """Brings the latents of `data.manifest` up to date, and returns the settings with `data.latents` filled in."""
    latents = find_latents(config.data.manifest, config.data.latents, text=config.data.text)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, latents=latents))


def sync_gradients(
    accelerator: Accelerator, transformer: torch.nn.Module, is_last: bool
) -> contextlib.AbstractContextManager:
    """Returns the context in which processes exchange gradients, if this pass is the last before the update."""
    return contextlib.nullcontext() if is_last else accelerator.no_sync(transformer)


def count_trained(model: torch.nn.Module) -> int:
    """Returns how many weights train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def say(accelerator: Accelerator, text: str) -> None:
    """Prints once, whatever the number of processes."""
    if accelerator.is_main_process:
        tqdm.write(text, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny", help="YAML file or preset (default: tiny)")
    parser.add_argument("--dry-run", action="store_true", help="print settings, size, memory and speed, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("data_prep").setLevel(logging.INFO)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            print(format_settings(config))
            print(describe_run(config))
            print(describe_text_costs(config.data, config.run.batch_size))
            return 0
        check_run_folder(Path(config.run.output_dir))  # here too, as the latents take long
        config = prepare_latents(config)
        with StopSignal() as stop:
            train(config, stop)
    except (ValueError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
