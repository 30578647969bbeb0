"""Checkpoints of a training run: written whole or not at all, checked before they are used, and rotated.

    checkpoints/step-00001000/    a model that `from_pretrained` opens, and beside it:
        resume/                   weights, optimizers and random generators, as Accelerate saves them, and the averages
                                  of `optim.ema_snapshot_lengths`
        state.json                how far the run is, and a digest of every other file; written last

A checkpoint is filled in a hidden folder that is renamed once everything in it is on the disk. So a process may be killed
at any moment, and a folder called `step-…` that is not whole was damaged later.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from qamdt.files import flush_to_disk, read_json, write_json
from qamdt.training.averages import AVERAGES_FILE


RESUME_FOLDER = "resume"
NOT_OF_THE_MODEL = (RESUME_FOLDER, "state.json", AVERAGES_FILE)
# How Accelerate names the weights in the folder `resume`, by how a run was launched.
_WEIGHTS_BY_LAUNCH = {
    "with FSDP": "pytorch_model_fsdp_0",
    "with DeepSpeed": "pytorch_model",
    "without FSDP and DeepSpeed": "model.safetensors",
}


def save_checkpoint(
    accelerator: Accelerator, state: dict, folder: Path, *, num_checkpoints: int, write_model: Callable[[Path], None]
) -> Path:
    """Writes all that resuming needs to `folder/step-…` and removes the oldest checkpoints.

    Args:
        accelerator: Holds model, optimizers and the state of the random generators.
        state: How far the run is, at least its `step`.
        folder: Folder of the checkpoints.
        num_checkpoints: How many to keep.
        write_model: Adds the averaged weights to the folder it is given; called in the main process.
    """
    target = folder / f"step-{state['step']:08d}"
    temporary = folder / f".{target.name}.tmp"
    if accelerator.is_main_process:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary / RESUME_FOLDER))
    accelerator.wait_for_everyone()  # each process writes its own random state, and its own share of the weights
    if accelerator.is_main_process:
        write_model(temporary)
        files = [file for file in sorted(temporary.rglob("*")) if file.is_file()]
        for file in files:
            if file.stat().st_nlink == 1:
                file.chmod(0o644)  # safetensors makes files that only their owner can read
        digests = {file.relative_to(temporary).as_posix(): _digest(file) for file in files}
        write_json(temporary / "state.json", {**state, "sha256": digests})
        for file in temporary.rglob("*"):
            flush_to_disk(file)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        flush_to_disk(folder)
        for outdated in list_checkpoints(folder)[num_checkpoints:]:
            shutil.rmtree(outdated)
    accelerator.wait_for_everyone()
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-[0-9]*"), reverse=True)


def find_checkpoint(folder: Path) -> tuple[Path | None, list[Path], list[str]]:
    """Returns the newest checkpoint that is whole, and the newer ones with what is wrong with each."""
    damaged, faults = [], []
    for checkpoint in list_checkpoints(folder):
        fault = _find_fault(checkpoint)
        if fault is None:
            return checkpoint, damaged, faults
        damaged.append(checkpoint)
        faults.append(f"{checkpoint} is damaged and passed over: {fault}.")
    return None, damaged, faults


def set_aside(checkpoint: Path) -> None:
    """Renames a damaged checkpoint, so that it counts for nothing but is there to look at."""
    target = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(checkpoint, target)


def resume_folder(checkpoint: Path) -> Path:
    """Returns where Accelerate's files are; earlier versions had no folder for them."""
    folder = checkpoint / RESUME_FOLDER
    return folder if folder.is_dir() else checkpoint


def load_resume(accelerator: Accelerator, checkpoint: Path, *, strict: bool) -> None:
    """Restores model, optimizers and random generators.

    Args:
        accelerator: Holds them.
        checkpoint: What `save_checkpoint` wrote.
        strict: Whether all weights must be there, frozen ones too.
    """
    folder = resume_folder(checkpoint)
    launches = {DistributedType.FSDP: "with FSDP", DistributedType.DEEPSPEED: "with DeepSpeed"}
    launch = launches.get(accelerator.distributed_type, "without FSDP and DeepSpeed")
    written = next((way for way, name in _WEIGHTS_BY_LAUNCH.items() if (folder / name).exists()), launch)
    if launch != written:
        raise RuntimeError(
            f"{checkpoint} was written {written}, and this run is launched {launch}; launch it as before, or start a "
            f"new `run.output_dir` from the averaged weights with `run.init_from={checkpoint}`."
        )
    # DeepSpeed saves frozen weights too, and knows no `strict`.
    options = {} if accelerator.distributed_type == DistributedType.DEEPSPEED else {"strict": strict}
    accelerator.load_state(str(folder), **options)


def read_state(checkpoint: Path) -> dict:
    """Returns the state that was saved with a checkpoint."""
    state = read_json(checkpoint / "state.json")
    del state["sha256"]
    return state


def store_trained_weights_alone(accelerator: Accelerator) -> None:
    """Keeps frozen weights out of the checkpoints of `accelerator`; load those with `strict=False`."""

    def remove_frozen(models: list, weights: list[dict], folder: str) -> None:
        # With FSDP the weights are saved already, whole, and there are none here.
        for model, state_dict in zip(models, weights, strict=False):
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            for name in state_dict.keys() - {name.removeprefix("module.") for name in trained} - trained:
                del state_dict[name]

    accelerator.register_save_state_pre_hook(remove_frozen)


def link_tree(source: Path, target: Path, *, without: tuple[str, ...] = ()) -> None:
    """Gives every file in `source` a second name in `target`, or copies it where the file system knows no links.

    Args:
        source: A folder whose files are never changed, only replaced.
        target: Folder of the second names.
        without: Files and folders right inside `source` to leave out.
    """
    for file in source.rglob("*"):
        place = file.relative_to(source)
        if file.is_file() and place.parts[0] not in without:
            name = target / place
            name.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, name)
            except OSError:
                shutil.copyfile(file, name)


def _find_fault(checkpoint: Path) -> str | None:
    try:
        digests = read_json(checkpoint / "state.json")["sha256"]
        for name, digest in digests.items():
            if _digest(checkpoint / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
