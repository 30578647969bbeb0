"""How a pipeline finds its weights: the default model, a folder, a repository on the Hub, or another pipeline."""

from __future__ import annotations

import functools
import inspect
import json
import os
import threading
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError

from pipelines.input_checks import quoted
from pipelines.model_limits import read_limits
from pipelines.samplers import check_scheduler, noise_settings
from pipelines.sharing import holds_only_shims
from qamdt.complete_weights import check_complete
from qamdt.embedded import TEXT_ENCODER_PACKAGE, default_model, load_text_encoder
from qamdt.precision import preferred_dtype


_loading = threading.Lock()


class GenerateWhenCalledWithPrompt(type):
    """Makes `Pipeline("a prompt", ...)` generate with the default model, which is loaded once, in its fastest precision.

    A call without prompt builds a pipeline from its components, as for any class.
    """

    def __call__(cls, *args, **kwargs):
        if "prompt" in kwargs or (args and isinstance(args[0], str | list)):
            with _loading:  # two threads must not load at once
                pipe = _load_once(cls, default_model())
            return pipe(*args, **kwargs)
        return super().__call__(*args, **kwargs)


@functools.lru_cache(maxsize=1)
def _load_once(pipeline_class: type, model: str) -> DiffusionPipeline:
    dtype = {"transformer": preferred_dtype("cpu"), "default": torch.float32}
    return pipeline_class.from_pretrained(model, dtype=dtype)


class LoadingMixin:
    """`from_pretrained` with a default model, and Hub repositories that need no code of their own."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # diffusers looks up the class that a saved pipeline names in its own namespace.
        setattr(diffusers, cls.__name__, cls)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None = None, **kwargs):
        """Loads a pipeline.

        Args:
            pretrained_model_name_or_path: A folder that `save_pretrained` wrote, or the id of a Hub repository with
                the same files. `None` takes the default model: what the environment variable QAMDT_MODEL names, or
                else the one embedded in the package.
            kwargs: Arguments of `DiffusionPipeline.from_pretrained`, such as `dtype`, and components or settings of
                the pipeline that replace the saved ones.

        Raises:
            FileNotFoundError: There is no such folder or repository.
            ValueError: Files in it are missing or damaged.
        """
        model = default_model() if pretrained_model_name_or_path is None else os.fspath(pretrained_model_name_or_path)
        if not Path(model).is_dir():
            if model.count("/") != 1 or model.startswith((".", "~", "/")):
                raise FileNotFoundError(
                    "`pretrained_model_name_or_path` must be an existing folder or a Hub id such as owner/name, "
                    f"got {model!r}, which is neither."
                )
            model = cls.download(model, **kwargs)
        if not (Path(model) / "model_index.json").is_file():
            if (Path(model) / LORA_WEIGHT_NAME_SAFE).is_file():
                raise FileNotFoundError(
                    f"{model!r} holds a LoRA adapter, not a model. Load the model that it was trained for, and add it "
                    "with `load_lora_weights`, or with `--lora` on the command line."
                )
            raise FileNotFoundError(
                "`pretrained_model_name_or_path` must be a folder that `save_pretrained` wrote, "
                f"got {model!r}, which has no model_index.json."
            )
        try:
            index = _read_object(Path(model) / "model_index.json")
            if not {"text_encoder", "tokenizer"} & kwargs.keys():
                kwargs |= _packaged_text_encoder(Path(model), index, kwargs.get("dtype", kwargs.get("torch_dtype")))
            if holds_only_shims(Path(model)):  # diffusers downloaded it, with the files that it asks for
                kwargs["trust_remote_code"] = True
            pipe = super().from_pretrained(model, **kwargs)
            if "scheduler" in kwargs and "transformer" not in kwargs:
                _check_other_scheduler(kwargs["scheduler"], Path(model), index)
        except FileNotFoundError:
            raise
        except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
            raise ValueError(
                f"{model!r} cannot be loaded, because files are missing, damaged or cut short. Copy or download them "
                f"again. ({error})"
            ) from error
        except (TypeError, AttributeError, KeyError, IndexError) as error:
            raise ValueError(
                f"{model!r} cannot be loaded: its JSON files hold what does not belong there, or an argument of "
                f"`from_pretrained` does not. ({type(error).__name__}: {error})"
            ) from error
        except ValueError as error:
            raise ValueError(f"{model!r} cannot be loaded: {error}") from error
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and name not in kwargs:
                check_complete(part, Path(model) / name)
        pipe._origin = Path(model)
        pipe.model_limits = read_limits(pipe._origin)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """Builds a pipeline of this class from the parts of another one of QA-MDT; both share their memory.

        Unlike in diffusers the parts keep their precision, unless a `dtype` is given.

        Args:
            pipeline: The other pipeline.
            kwargs: `dtype`, and components or settings of the pipeline that take the place of the other's.
        """
        dtype = kwargs.pop("dtype", None)
        names = inspect.signature(cls.__init__).parameters.keys() - {"self"}
        if unknown := sorted(kwargs.keys() - names):
            raise ValueError(f"`from_pipe` takes `dtype` and {sorted(names)}, got {unknown}.")
        if missing := sorted(names - pipeline.components.keys() - pipeline.config.keys()):
            raise ValueError(
                f"`pipeline` must be one of QA-MDT, got {type(pipeline).__name__}, which has no {missing}."
            )
        parts = {name: pipeline.components.get(name, pipeline.config.get(name)) for name in names}
        made = cls(**parts | kwargs)
        if pipeline.config.get("_name_or_path") is not None:
            made.register_to_config(_name_or_path=pipeline.config["_name_or_path"])
        made._scorer = pipeline._scorer
        made.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
        made._origin, made.model_limits = pipeline._origin, pipeline.model_limits
        return made if dtype is None else made.to(dtype)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Downloads a Hub repository, or finds it in the cache, and returns its folder.

        diffusers would ask for Python files in the repository, because some components come from this package.

        Args:
            pretrained_model_name: Id of the repository, such as owner/name.
            kwargs: `revision`, `cache_dir`, `token`, `local_files_only` and `force_download`; what else diffusers
                passes on has no meaning for a repository that holds nothing but the pipeline.
        """
        options = ("revision", "cache_dir", "token", "local_files_only", "force_download")
        try:
            return snapshot_download(
                pretrained_model_name,
                allow_patterns=[
                    "model_index.json",
                    "README.md",
                    "*/*.json",
                    "*/*.safetensors",
                    "*/*.txt",
                    "*/*.model",
                ],
                **{option: kwargs[option] for option in options if kwargs.get(option) is not None},
            )
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise FileNotFoundError(
                "`pretrained_model_name_or_path` must be an existing folder or the id of a reachable Hub repository, "
                f"got {pretrained_model_name!r}, which is no folder here, and the Hub did not answer with it: {error}"
            ) from error


def _read_object(file: Path) -> dict[str, Any]:
    """Reads a JSON file that must hold an object."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{str(file)!r} must hold a JSON object, got {quoted(values)}.")
    return values


def _check_other_scheduler(scheduler: SchedulerMixin, folder: Path, index: dict[str, Any]) -> None:
    """Refuses a scheduler that takes the place of the saved one and does not fit the saved network."""
    saved = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder / "scheduler")
    check_scheduler(scheduler, noise_settings(saved))


def _packaged_text_encoder(
    folder: Path, index: dict[str, Any], dtype: torch.dtype | dict[str, torch.dtype] | None
) -> dict[str, Any]:
    """Tokenizer and text encoder of a model that takes them from a package; nothing for a model with its own."""
    package = index.get("text_encoder_package")
    if package is None or index.get("text_encoder", [None])[0] is not None:
        return {}
    if package != TEXT_ENCODER_PACKAGE:
        raise ValueError(
            f"{str(folder)!r} takes its text encoder from {package!r}, and only {TEXT_ENCODER_PACKAGE!r} is known here. "
            "Pass `text_encoder` and `tokenizer`, or update this package."
        )
    tokenizer, text_encoder = load_text_encoder()
    if isinstance(dtype, dict):
        dtype = dtype.get("text_encoder", dtype.get("default"))
    if dtype is not None:
        text_encoder = text_encoder.to(dtype)
    return {"tokenizer": tokenizer, "text_encoder": text_encoder}
