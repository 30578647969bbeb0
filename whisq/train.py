"""Trains the heads of a WhisQ model, and its encoders if wanted, on rated music, once for each seed.

    accelerate launch -m whisq.train --config default data.musiceval=MusicEval-phase1 run.output_dir=runs/whisq
    accelerate launch -m whisq.train --config mini data.manifest=corpus/manifest.jsonl run.output_dir=runs/mini

What the encoders say about every clip and prompt is computed first and cached. One that `encoders.finetune` names then
learns with the heads, and what it says is computed anew in every step; the other is frozen. Each seed stops when its
rank correlations on the dev set have not risen for `run.patience` passes, and keeps the weights of its best pass. The
same command again resumes; SIGTERM or Ctrl-C ends it earlier, with a checkpoint.

    output_dir/config.yaml          the settings of the run
    output_dir/music.json           stands for clips, ratings and encoders: a run goes on with the same ones only
    output_dir/faults.jsonl         rows and files that could not be used; then the exit status is 1
    output_dir/seed-0/log.jsonl     losses and dev scores, a line for each pass
    output_dir/seed-0/model/        the weights of the best pass, which `WhisQScorer.from_pretrained` opens; fine-tuned
                                    encoders lie in it as audio_encoder/ and text_encoder/
    output_dir/results.json         figures on the dev and test set: each seed's, mean and standard deviation
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from safetensors import SafetensorError
from tqdm import tqdm

from qamdt.complete_weights import load_complete
from qamdt.files import (
    append_json_line,
    claim_folder,
    cut_log,
    read_json,
    replace_folder,
    write_atomically,
    write_json,
    write_text,
)
from qamdt.outputs import check_output_folder
from qamdt.run_control import StopSignal, agree, forget_earlier_runs
from qamdt.settings import check_resumption, format_settings
from whisq.evaluation.reports import Summary, format_tables, measure_predictions, summarize
from whisq.modeling_whisq import WhisQModel
from whisq.ratings import write_faults
from whisq.training.config import WhisQConfig, load_config
from whisq.training.dataset import order_of_epoch
from whisq.training.finetuning import FineTunedEncoders, load_finetuned, start_finetuning
from whisq.training.objective import WhisQObjective, build_optimizer, learning_rate_factor
from whisq.training.predictions import dev_score, predict
from whisq.training.preparation import PreparedMusic, prepare


OUTPUTS = ("music.json", "faults.jsonl", "results.json", "seed-*")
# What changes no result, or only adds to them.
FREE_SETTINGS = {"run.seeds", "run.checkpoint_minutes", "run.num_resamples", "run.output_dir", "data.features"}


def train(
    config: WhisQConfig, music: PreparedMusic, accelerator: Accelerator, stop: StopSignal
) -> dict[str, Summary] | None:
    """Trains a model with each seed and returns the results, or `None` when it was stopped before the end.

    Args:
        config: The settings of the run.
        music: The clips, prepared with the same `data` and `encoders` settings.
        accelerator: The processes that train.
        stop: Looked at after every update; once it is requested, the run saves and ends.
    """
    output_dir = Path(config.run.output_dir)
    check_run_folder(config)
    accelerator.wait_for_everyone()
    with claim_folder(output_dir, is_main_process=accelerator.is_main_process):
        return _train_all_seeds(config, music, accelerator, stop)


def _train_all_seeds(
    config: WhisQConfig, music: PreparedMusic, accelerator: Accelerator, stop: StopSignal
) -> dict[str, Summary] | None:
    """Does what `train` says, in a folder that no other run writes to."""
    output_dir = Path(config.run.output_dir)
    if accelerator.is_main_process:
        check_run_folder(config)  # again, as another run may have ended here since
        write_text(output_dir / "config.yaml", format_settings(config))
        if (note := check_same_music(output_dir / "music.json", music)) is not None:
            say(accelerator, note)
        write_faults(output_dir / "faults.jsonl", music.faults)
    accelerator.wait_for_everyone()
    models = []
    for seed in config.run.seeds:
        folder = output_dir / f"seed-{seed}"
        if not train_seed(config, music, accelerator, stop, seed, folder):
            say(accelerator, f"Stopped; the same command resumes in {folder}.")
            return None
        models.append(load_complete(WhisQModel, folder / "model").to(accelerator.device))
    results: dict[str, Summary] = {}
    for split in ("dev", "test"):
        clips = music.splits[split]
        if clips:
            measures = [
                measure_predictions(
                    clips,
                    predict(
                        model,
                        music.cached,
                        clips,
                        batch_size=config.run.batch_size,
                        device=accelerator.device,
                        encoders=load_finetuned(model),
                    ),
                    system_ratings=music.system_ratings,
                )
                for model in models
            ]
            results[split] = summarize(measures)
    if accelerator.is_main_process:
        write_json(output_dir / "results.json", {"seeds": list(config.run.seeds), **results})
    return results


def train_seed(
    config: WhisQConfig, music: PreparedMusic, accelerator: Accelerator, stop: StopSignal, seed: int, folder: Path
) -> bool:
    """Trains one model and returns whether it was trained to its end.

    Args:
        config: The settings of the run.
        music: The clips.
        accelerator: The processes that train.
        stop: Looked at after every update.
        seed: Everything random hangs on it.
        folder: Where checkpoint, log and weights go.
    """
    run = config.run
    if (folder / "done.json").is_file():
        return True

    # Model, optimizer, and where an earlier run stopped.
    set_seed(seed)
    encoders = start_finetuning(config.encoders)
    model = WhisQModel(**config.model, **music.model_arguments | encoders.names).train()
    trained = WhisQObjective(model, encoders, config.loss, config.data.window_loss)
    optimizer = build_optimizer(trained, config.optim)
    state = {"seed": seed, "epoch": 0, "step": 0, "loss_sums": {}, "best_score": -2.0, "best_epoch": 0}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file():
        state = load_checkpoint(checkpoint, trained, optimizer)
    cut_log(folder / "log.jsonl", "epoch", state["epoch"])
    # Processes must not wait for gradients of parts that no token passes, such as the pooling of BERT.
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=bool(encoders.names))
    objective, optimizer = accelerator.prepare(trained, optimizer)

    def save() -> None:
        if accelerator.is_main_process:
            save_checkpoint(checkpoint, trained, optimizer.optimizer, state)
        accelerator.wait_for_everyone()

    with tqdm(
        total=run.max_epochs,
        initial=state["epoch"],
        desc=f"seed {seed}",
        unit="pass",
        disable=not accelerator.is_main_process or None,
    ) as progress:
        while state["epoch"] < run.max_epochs and state["epoch"] - state["best_epoch"] < run.patience:
            losses = train_pass(config, music, accelerator, stop, objective, optimizer, state, save)
            if losses is None:
                return False
            state |= {"epoch": state["epoch"] + 1, "step": 0, "loss_sums": {}}

            # Look at the dev set and keep the best weights.
            clips = music.splits["dev"]
            predictions = predict(
                model,
                music.cached,
                clips,
                batch_size=run.batch_size,
                device=accelerator.device,
                encoders=encoders,
            )
            scores = dev_score(clips, predictions)
            is_best = scores["score"] > state["best_score"]
            if is_best:
                state |= {"best_score": scores["score"], "best_epoch": state["epoch"]}
            if accelerator.is_main_process:
                if is_best:
                    replace_model(model, encoders, folder / "model")
                line = {"epoch": state["epoch"], **losses, **{f"dev_{name}": value for name, value in scores.items()}}
                append_json_line(folder / "log.jsonl", line)
            save()
            progress.update()
            progress.set_postfix(loss=f"{losses['loss']:.3f}", dev=f"{scores['score']:.3f}")
    if accelerator.is_main_process:
        write_json(folder / "done.json", {"epochs": state["epoch"], "best_epoch": state["best_epoch"]})
        checkpoint.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return True


def train_pass(
    config: WhisQConfig,
    music: PreparedMusic,
    accelerator: Accelerator,
    stop: StopSignal,
    objective: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    save: Callable[[], None],
) -> dict[str, float] | None:
    """Goes through the training clips once, from `state["step"]` on, and returns the mean losses.

    Everything random hangs on the seed and the number of the step, so a resumed pass repeats an unbroken one.

    Returns:
        The means of the losses; `None` when the run was asked to stop, after a checkpoint.
    """
    seed, epoch, batch_size = state["seed"], state["epoch"], config.run.batch_size
    clips = music.training_clips(seed, epoch)
    order = order_of_epoch(len(clips), seed, epoch, batch_size * accelerator.num_processes)
    num_steps = len(order) // (batch_size * accelerator.num_processes)
    saved_at = time.monotonic()
    while state["step"] < num_steps:
        done = (epoch + state["step"] / num_steps) / config.run.max_epochs
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(config.optim, done)

        # Forward and backward.
        first = (state["step"] * accelerator.num_processes + accelerator.process_index) * batch_size
        some = [clips[i] for i in order[first : first + batch_size]]
        batch = music.cached.collate(
            some,
            seed=f"window {seed} {epoch}",
            hears=config.encoders.finetunes_audio,
            reads=config.encoders.finetunes_text,
        ).to(accelerator.device)
        place = f"dropout {seed} {epoch} {state['step']} {accelerator.process_index}"
        torch.manual_seed(random.Random(place).getrandbits(63))
        with accelerator.autocast():
            parts = objective(batch)
        accelerator.backward(parts["loss"])

        # Update.
        grad_norm = accelerator.clip_grad_norm_(objective.parameters(), config.optim.max_grad_norm)
        if not torch.isfinite(grad_norm):
            raise RuntimeError(
                f"the gradient is not finite in pass {epoch} of seed {seed}; lower `optim.learning_rate` and run again: "
                "the run resumes from its last checkpoint."
            )
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        for name, value in parts.items():
            mean = accelerator.reduce(value.detach(), "mean").item()
            state["loss_sums"][name] = state["loss_sums"].get(name, 0.0) + mean

        # Save.
        is_due = time.monotonic() - saved_at > 60 * config.run.checkpoint_minutes
        is_stopping, is_due = agree(accelerator, stop.is_requested, is_due)
        if is_stopping or is_due:
            save()
            saved_at = time.monotonic()
        if is_stopping:
            return None
    return {name: total / num_steps for name, total in state["loss_sums"].items()}


def save_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Writes all that resuming needs into one file, whole or not at all."""
    values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
    write_atomically(path, lambda file: torch.save(values, file))


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restores model and optimizer and returns the state that was saved with them."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["state"]


def replace_model(model: WhisQModel, encoders: FineTunedEncoders, folder: Path) -> None:
    """Writes the weights of the best pass in place of those that were the best before."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    encoders.save_pretrained(temporary)
    replace_folder(temporary, folder)


def check_run_folder(config: WhisQConfig) -> None:
    """Refuses a folder of something else, or of a run with other settings, except those that change no result."""
    output_dir = Path(config.run.output_dir)
    path = output_dir / "config.yaml"
    check_output_folder(output_dir, OUTPUTS, is_ours=path.is_file())
    if path.is_file():
        # A setting that the run was started without has the value that it has by default.
        check_resumption(load_config(path), config, free=FREE_SETTINGS, source=path)


def check_same_music(path: Path, music: PreparedMusic) -> str | None:
    """Refuses to go on with a run that learnt from something else, and records what it learns from.

    Returns:
        A line that says so if the run comes from an earlier version, which kept no record.
    """
    found, key = read_json(path) if path.is_file() else None, music.key()
    if found is not None and (not isinstance(found, dict) or found.get("key") != key):
        raise ValueError(
            f"{path.parent} holds a run on clips, ratings, prompts or encoders that have changed since; give another "
            "`run.output_dir`."
        )
    is_new = not list(path.parent.glob("seed-*"))
    write_json(path, {"key": key})
    return None if found or is_new else f"{path.parent} does not say what it has learnt from; taken to be the same."


def say(accelerator: Accelerator, text: str) -> None:
    """Prints once, whatever the number of processes."""
    if accelerator.is_main_process:
        tqdm.write(text, file=sys.stderr)


def build_accelerator(config: WhisQConfig) -> Accelerator:
    """Joins the processes that were launched together."""
    # Without `cpu=True`, processes that torchrun started on a machine without a GPU would not find each other.
    forget_earlier_runs()
    return Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=config.run.mixed_precision)


def report_faults(music: PreparedMusic, folder: Path) -> int:
    """Says how much of the data could not be used and returns the exit status that follows."""
    if music.faults:
        print(f"{len(music.faults)} faults in the data, listed in {folder / 'faults.jsonl'}.", file=sys.stderr)
    return int(bool(music.faults))


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="whisq train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="default", help="YAML file or preset (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print settings and size, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            print(format_settings(config))
            return 0
        check_run_folder(config)  # here too, as preparing takes long
        accelerator = build_accelerator(config)
        with StopSignal() as stop:
            music = prepare(config, accelerator)
            results = train(config, music, accelerator, stop)
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if results is None:
        return 130
    if accelerator.is_main_process:
        for split, summary in results.items():
            print(f"## {split}, mean ± sd of {len(config.run.seeds)} seeds\n\n{format_tables({'WhisQ': summary})}")
        return report_faults(music, Path(config.run.output_dir))
    return int(bool(music.faults))


if __name__ == "__main__":
    sys.exit(main())
