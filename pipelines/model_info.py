"""What `qamdt info` shows: facts about a model folder, read without loading it."""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

import qamdt
from qamdt.embedded import text_encoder_dir


def describe_model(folder: Path) -> str:
    """Returns a few lines about the model in a folder.

    Raises:
        FileNotFoundError: There is no model in the folder.
    """
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"`model` must be a folder with a model_index.json, got {str(folder)!r}.")
    index = read_json(folder / "model_index.json")
    try:
        return _describe(folder, index)
    except ValueError as error:
        raise ValueError(f"{str(folder)!r} cannot be described: {error}") from error
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"the JSON files of {str(folder)!r} hold what does not belong there ({type(error).__name__}: {error}). Copy "
            "or download them again."
        ) from error


def _describe(folder: Path, index: dict[str, Any]) -> str:
    facts = {"model": str(folder)}
    facts |= {name: _describe_part(folder, index, name) for name in ("text_encoder", "transformer", "vae", "vocoder")}
    facts |= {"scheduler": _describe_scheduler(folder), "sound": _describe_sound(folder)}
    facts |= {"quality": _describe_quality(index.get("quality_stats"))}
    facts |= {"versions": ", ".join(f"{name} {number}" for name, number in versions().items())}
    return "\n".join(f"{name:<14}{fact}" for name, fact in facts.items())


def versions() -> dict[str, str]:
    """The versions that decide what a seed sounds like."""
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"qamdt": qamdt.__version__, **packages, "python": platform.python_version()}


def count_parameters(weights: Path) -> int:
    """Counts the numbers in a safetensors file; only its header is read."""
    try:
        with safe_open(weights, framework="numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    except SafetensorError as error:
        raise ValueError(f"{str(weights)!r} is damaged or cut short: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file, naming it when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} must be a JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {str(values)[:60]!r}.")
    return values


def _describe_part(folder: Path, index: dict[str, Any], name: str) -> str:
    class_name = (index.get(name) or [None, None])[1]
    package = index.get("text_encoder_package")
    if class_name is None and name == "text_encoder" and package is not None:
        class_name, part = f"from {package}", text_encoder_dir()
    elif class_name is None:
        return "none"
    else:
        part = folder / name
    num_parameters = sum(map(count_parameters, part.glob("*.safetensors")))
    return f"{class_name}, {num_parameters / 1e6:.2f} M parameters"


def _describe_scheduler(folder: Path) -> str:
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    return f"{config['_class_name']}, {config.get('prediction_type', 'epsilon')}"


def _describe_sound(folder: Path) -> str:
    vocoder = read_json(folder / "vocoder" / "config.json")
    num_halvings = len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1
    hop_length = vocoder.get("hop_length") or math.prod(vocoder["upsample_rates"])
    num_frames = read_json(folder / "transformer" / "config.json")["sample_size"][0]
    seconds = num_frames * 2**num_halvings * hop_length / vocoder["sampling_rate"]
    return f"{vocoder['sampling_rate']} Hz mono, {seconds:g} s unless asked otherwise"


def _describe_quality(stats: dict[str, Any] | None) -> str:
    if stats is None:
        return "words only: the model has no quality statistics"
    edges = ", ".join(f"{edge:.2f}" for edge in stats["edges"])
    return (
        f"scores of {stats['scorer']} over {stats['num_clips']} clips: mean {stats['mean']:.2f}, "
        f"deviation {stats['std']:.2f}; levels 2 to 5 begin at {edges}"
    )
