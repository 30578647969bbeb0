"""The network that a run trains: a fresh one, one that goes on, or adapters for it."""

import logging
from pathlib import Path

import torch

from qamdt.complete_weights import load_complete
from qamdt.embedded import default_model_dir
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.training.config import LoraConfig, TrainConfig


logger = logging.getLogger(__name__)

# What `model` may add to the network of `run.init_from`; it starts without effect.
ADDITIONS = ("num_music_features",)
# What `model` may change in it, for latents of another autoencoder: the weights that touch latents start anew.
LATENT_SHAPE = ("in_channels", "patch_size", "patch_overlap", "sample_size")


def build_model(config: TrainConfig) -> QAMDTTransformer2DModel:
    """Returns the network to train: a fresh one, or that of `run.init_from`, with adapters if `lora` asks for them."""
    if config.run.init_from is None:
        return QAMDTTransformer2DModel(**config.model)
    source, subfolder = _find_network(config.run.init_from)
    arguments = read_model_config(config)
    model = load_complete(QAMDTTransformer2DModel, source, subfolder=subfolder, torch_dtype=torch.float32)
    added = {key: arguments[key] for key in ADDITIONS if arguments.get(key) and not model.config[key]}
    latent_shape = _differing(model, {key: arguments[key] for key in LATENT_SHAPE if key in arguments})
    if added or latent_shape:
        model = _rebuild(model, added, {key: arguments[key] for key in latent_shape})
    differing = _differing(model, arguments)
    if differing:
        raise ValueError(
            f"the network in `run.init_from` has {differing}, which `model` contradicts; set `model: null` or those values."
        )
    if config.lora is not None:
        add_adapter(model, config.lora)
    return model


def _rebuild(model: QAMDTTransformer2DModel, added: dict, latent_shape: dict) -> QAMDTTransformer2DModel:
    """Returns the network with parts that it did not have, without effect until they are trained, or for other latents."""
    arguments = {key: value for key, value in model.config.items() if not key.startswith("_")}
    rebuilt = QAMDTTransformer2DModel(**{**arguments, **added, **latent_shape})
    weights = model.state_dict()
    if latent_shape:
        logger.warning(
            f"`model` has latents of another shape than `run.init_from` ({latent_shape}): the first and the last layer start anew."
        )
        sizes = {name: weight.shape for name, weight in rebuilt.state_dict().items()}
        weights = {
            name: weight
            for name, weight in weights.items()
            if not name.startswith(("patch_embed.", "proj_out.")) and weight.shape == sizes[name]
        }
    rebuilt.load_state_dict(weights, strict=False)
    return rebuilt


def _differing(model: QAMDTTransformer2DModel, arguments: dict) -> dict:
    """Returns what a network has where `arguments` say something else."""
    return {key: model.config[key] for key, value in arguments.items() if _plain(model.config[key]) != _plain(value)}


def read_model_config(config: TrainConfig) -> dict:
    """Returns the arguments of the network to train, from `model` or else from `run.init_from`."""
    if config.model is not None:
        return config.model
    source, subfolder = _find_network(config.run.init_from)
    try:
        arguments = QAMDTTransformer2DModel.load_config(source, subfolder=subfolder)
    except OSError as error:
        raise FileNotFoundError(
            f"`run.init_from` must be a folder or Hub id with a network or a pipeline, got {source!r}: {error}"
        ) from error
    return {key: value for key, value in arguments.items() if not key.startswith("_")}


def _find_network(source: str) -> tuple[str, str | None]:
    """Returns the folder or Hub id that `run.init_from` names, and the folder in it that holds the network."""
    source = str(default_model_dir()) if source == "embedded" else source
    # A pipeline keeps the network in a folder of its own.
    return source, None if (Path(source) / "config.json").is_file() else "transformer"


def _plain(value: object) -> object:
    """Returns a list as the tuple that it stands for, or anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def add_adapter(model: QAMDTTransformer2DModel, config: LoraConfig) -> None:
    """Freezes a network and gives it low-rank adapters, which train instead."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("`lora` needs the package peft; install it with `pip install peft`.") from error
    model.requires_grad_(False)
    model.add_adapter(
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.rank if config.alpha is None else config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.target_modules,
        )
    )


def check_fit(index: dict, model: QAMDTTransformer2DModel) -> None:
    """Refuses latents and texts of other sizes than the network takes."""
    for key, option, wanted in (
        ("latent_channels", "in_channels", model.config.in_channels),
        ("latent_bins", "sample_size[1]", model.config.sample_size[1]),
        ("text_dim", "cross_attention_dim", model.config.cross_attention_dim),
    ):
        if index.get(key, wanted) != wanted:
            raise ValueError(
                f"the data has `{key}` {index[key]}, but the network's `{option}` is {wanted}; change `model.{option}` "
                "or encode with another autoencoder or text encoder."
            )
