"""What a training run needs beside the loop: the model to train, optimizers, learning rate, averaged weights."""

import contextlib
import math
from pathlib import Path

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS_FILE
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qamdt.config import LoraConfig, OptimConfig, TrainConfig
from qamdt.embedded import default_model_dir
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.muon import Float32Muon
from qamdt.precision import has_bf16_instructions


# What `model` may add to the network of `run.init_from`; it starts without effect.
ADDITIONS = ("num_music_features",)
AVERAGES_FILE = "ema.safetensors"  # of adapters, whose weights have other names in the file that pipelines read


def build_model(config: TrainConfig) -> QAMDTTransformer2DModel:
    """Returns the network to train: a fresh one, or that of `run.init_from`, with adapters if `lora` asks for them."""
    if config.run.init_from is None:
        return QAMDTTransformer2DModel(**config.model)
    source, subfolder = _find_network(config.run.init_from)
    arguments = read_model_config(config)
    model = QAMDTTransformer2DModel.from_pretrained(source, subfolder=subfolder, torch_dtype=torch.float32)
    added = {key: arguments[key] for key in ADDITIONS if arguments.get(key) and not model.config[key]}
    if added:
        model = _grow(model, added)
    differing = {
        key: model.config[key] for key, value in arguments.items() if _plain(model.config[key]) != _plain(value)
    }
    if differing:
        raise ValueError(
            f"the network in `run.init_from` has {differing}, which `model` contradicts; set `model: null` or those values."
        )
    if config.lora is not None:
        add_adapter(model, config.lora)
    return model


def _grow(model: QAMDTTransformer2DModel, added: dict) -> QAMDTTransformer2DModel:
    """Returns the network with parts that it did not have, which have no effect until they are trained."""
    arguments = {key: value for key, value in model.config.items() if not key.startswith("_")}
    grown = QAMDTTransformer2DModel(**{**arguments, **added})
    grown.load_state_dict(model.state_dict(), strict=False)
    return grown


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


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Returns AdamW over all weights that train, or Muon over the hidden matrices and AdamW over the rest.

    Only matrices of the blocks have weight decay: not biases, norms, embeddings and tables, and not the input and
    output layers. Muon orthogonalises the updates of the same matrices.
    """
    hidden, others = split_parameters(model)
    betas = (config.beta1, config.beta2)
    if config.optimizer != "muon":
        groups = [{"params": hidden, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        adamw = torch.optim.AdamW if config.optimizer == "adamw" else _eight_bit_adamw()
        return [adamw(groups, lr=config.learning_rate, betas=betas)]
    is_slow_in_bf16 = all(weight.device.type == "cpu" for weight in hidden) and not has_bf16_instructions()
    if not is_slow_in_bf16 and not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"`optim.optimizer=muon` needs PyTorch 2.9 or newer, this is {torch.__version__}.")
    muon = (Float32Muon if is_slow_in_bf16 else torch.optim.Muon)(
        hidden,
        lr=config.muon_learning_rate or config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    if not others:
        return [muon]
    return [muon, torch.optim.AdamW(others, lr=config.learning_rate, betas=betas, weight_decay=0.0)]


def _eight_bit_adamw() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            "`optim.optimizer=adamw8bit` needs the package bitsandbytes; install it with `pip install bitsandbytes`."
        ) from error
    return AdamW8bit


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Splits the weights that train into the matrices of the blocks and the rest."""
    hidden, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_in_block = "blocks." in name or name.startswith("side_interpolator.")
        is_matrix = parameter.ndim == 2 and "table" not in name
        (hidden if is_in_block and is_matrix else others).append(parameter)
    return hidden, others


def learning_rate_factor(config: OptimConfig, step: int, progress: float) -> float:
    """Returns what the peak rates are multiplied with.

    Args:
        config: Warm-up and schedule.
        step: Updates done.
        progress: How much of the run is done, 0 to 1, by steps or by minutes, whichever ends it first.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = min(progress, 1.0)
    if config.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "trapezoid":
        return warmup * min(1.0, (1 - progress) / config.decay_share)
    return warmup


def attention_kernel(device: torch.device, mixed_precision: str) -> contextlib.AbstractContextManager:
    """Returns the context that attention runs in.

    On a CPU in bf16 the fused kernel's backward pass is so slow that plain matrix products, which are not fused, make
    the whole step 1.4 times faster at a few hundred tokens.
    """
    if device.type == "cpu" and mixed_precision == "bf16":
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # holds for CPU as well: products stay in bf16
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


class WeightAverage:
    """Averaged weights, which move towards the present ones.

    Args:
        model: The model to follow; the weights of it that train are the first average.
    """

    def __init__(self, model: nn.Module):
        self.averages = {
            name: parameter.detach().float().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def move(self, model: nn.Module, share: float) -> None:
        """Gives the present weights this share of the average."""
        weights = [parameter.detach().float() for parameter in model.parameters() if parameter.requires_grad]
        torch._foreach_lerp_(list(self.averages.values()), weights, share)

    def gather(self) -> dict[str, torch.Tensor]:
        """Returns whole averages, also where FSDP has spread them; every process must call it."""
        return {
            name: average.full_tensor() if isinstance(average, DTensor) else average
            for name, average in self.averages.items()
        }

    def fill(self, averages: dict[str, torch.Tensor]) -> None:
        """Takes over what `gather` returned."""
        for name, average in self.averages.items():
            value = averages[name].to(average.device)
            if isinstance(average, DTensor):
                value = distribute_tensor(value, average.device_mesh, average.placements)
            average.copy_(value)


class ExponentialAverage(WeightAverage):
    """An exponential moving average whose decay rises towards its final value at the start.

    Args:
        model: The model to follow.
        decay: Decay per update.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after update number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        self.move(model, 1 - decay)

    def load(self, checkpoint: Path) -> None:
        """Reads the averages that `save_weights` wrote into a checkpoint."""
        path = checkpoint / "transformer" / WEIGHTS_FILE
        self.fill(load_file(path if path.is_file() else checkpoint / AVERAGES_FILE))


def save_weights(model: QAMDTTransformer2DModel, averages: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes averaged weights: the folder `transformer` of a whole network, or only its adapter.

    Args:
        model: The network that trains.
        averages: What `ExponentialAverage.gather` returned.
        folder: Folder to write to.
    """
    averages = {name: average.cpu().contiguous() for name, average in averages.items()}
    if not hasattr(model, "peft_config"):
        (folder / "transformer").mkdir()
        model.save_config(folder / "transformer")
        save_file(averages, folder / "transformer" / WEIGHTS_FILE, metadata={"format": "pt"})
        return
    save_file(averages, folder / AVERAGES_FILE)
