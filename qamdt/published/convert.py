"""Turns the published QA-MDT checkpoint into a folder that `QAMDTPipeline.from_pretrained` reads.

The published file is a Lightning checkpoint of 13.5 GB: the network, its moving average, the optimiser, and all
frozen parts. It is mapped into memory, not read, and one component is converted after the other.
"""

import os
import pickle
import re
import shutil
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler
from torch import nn
from transformers import AutoTokenizer, SpeechT5HifiGan, T5EncoderModel

from qamdt.audio import SAMPLING_RATE
from qamdt.complete_weights import load_complete
from qamdt.files import write_json
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.published.convert_decoders import (
    StateDict,
    check_names,
    convert_vae_state_dict,
    convert_vocoder_state_dict,
    count_modules,
    text_encoder_config_from_original,
    vae_config_from_original,
    vocoder_config_from_original,
    without_prefix,
)
from qamdt.quality import PUBLISHED_QUALITY_STATS


# What the published configuration file says about the network.
PUBLISHED_UNET_PARAMS = {
    "input_size": [256, 16],
    "patch_size": [4, 1],
    "overlap": [0, 0],
    "in_channels": 8,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "cond_dim": 1024,
    "mask_ratio": 0.3,
    "decode_layer": 8,
}

# What the published constructor falls back to: not the same, so it matters for a file that leaves something out.
_ORIGINAL_DEFAULTS = {
    "input_size": (256, 16),
    "patch_size": (16, 4),
    "overlap": (0, 0),
    "in_channels": 8,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "cond_dim": 1024,
    "lewei_scale": 1.0,
    "decode_layer": 4,
}
# Parameters that have no effect on the network: read by nobody, or by the training loop only.
_WITHOUT_EFFECT = {
    *("overlap_size", "pred_sigma", "class_dropout_prob", "use_cfg", "cfg_scale", "model_max_length", "config"),
    *("window_size", "window_block_indexes", "use_rel_pos", "drop_path", "mask_ratio"),
    # Facts that a description of a built network lists beside its parameters.
    *("model_class", "num_patches", "grid", "pad", "half_depth", "no_grad"),
}

_TRANSFORMER_TENSORS = {
    "decoder_pos_embed": "decoder_positions",
    "mask_token": "mask_token",
    "mos_embed.weight": "quality_embed.weight",
    "x_embedder.proj.weight": "patch_embed.proj.weight",
    "x_embedder.proj.bias": "patch_embed.proj.bias",
    "t_embedder.mlp.0.weight": "time_embed.linear_1.weight",
    "t_embedder.mlp.0.bias": "time_embed.linear_1.bias",
    "t_embedder.mlp.2.weight": "time_embed.linear_2.weight",
    "t_embedder.mlp.2.bias": "time_embed.linear_2.bias",
    "t_block.1.weight": "time_modulation.weight",
    "t_block.1.bias": "time_modulation.bias",
    "y_embedder.weight": "text_embed.weight",
    "y_embedder.bias": "text_embed.bias",
    "final_layer.scale_shift_table": "scale_shift_table",
    "final_layer.linear.weight": "proj_out.weight",
    "final_layer.linear.bias": "proj_out.bias",
}
# A published layer and the layers that it becomes, in the order of its rows.
_BLOCK_LAYERS = {
    "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.proj": ("attn.to_out",),
    "cross_attn.q_linear": ("cross_attn.to_q",),
    "cross_attn.kv_linear": ("cross_attn.to_k", "cross_attn.to_v"),
    "cross_attn.proj": ("cross_attn.to_out",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "skip_linear": ("skip_linear",),
}
_BLOCK_TENSORS = {
    "scale_shift_table": ("scale_shift_table",),
    **{
        f"{layer}.{kind}": tuple(f"{new_layer}.{kind}" for new_layer in new_layers)
        for layer, new_layers in _BLOCK_LAYERS.items()
        for kind in ("weight", "bias")
    },
}
_STACKS = ("en_inblocks", "en_outblocks", "de_blocks", "sideblocks")
_STACKS_WITH_SKIP = ("en_outblocks", "de_blocks")


def transformer_config_from_original(unet_params: dict) -> dict:
    """Translates `unet_config.params` of a published configuration file to arguments of our network.

    Parameters that the published network accepts without using them are accepted here too (`_WITHOUT_EFFECT`).
    `mask_ratio` is one of them: how many patches are hidden is decided by whoever calls the network.

    Args:
        unet_params: Parameters by their published names. What is missing has the published default.
    """
    unknown = sorted(set(unet_params) - set(_ORIGINAL_DEFAULTS) - _WITHOUT_EFFECT)
    if unknown:
        raise ValueError(
            f"`unet_params` has unknown parameters {unknown}; expected {sorted(_ORIGINAL_DEFAULTS)} and, without"
            f" effect, {sorted(_WITHOUT_EFFECT)}."
        )
    params = _ORIGINAL_DEFAULTS | {name: value for name, value in unet_params.items() if name in _ORIGINAL_DEFAULTS}
    if params["hidden_size"] % params["num_heads"]:
        raise ValueError(
            "`unet_params` must have a `hidden_size` that is a multiple of `num_heads`, got"
            f" hidden_size={params['hidden_size']} and num_heads={params['num_heads']}."
        )
    num_decoder_layers = int(params["decode_layer"])
    # Two halves of an encoder: with an odd rest, the published network has one block less than its `depth`.
    num_encoder_layers = (params["depth"] - num_decoder_layers) // 2 * 2
    return {
        "sample_size": tuple(params["input_size"]),
        "patch_size": tuple(params["patch_size"]),
        "patch_overlap": tuple(params["overlap"]),
        "in_channels": params["in_channels"],
        "num_layers": num_encoder_layers + num_decoder_layers,
        "num_decoder_layers": num_decoder_layers,
        "num_attention_heads": params["num_heads"],
        "attention_head_dim": params["hidden_size"] // params["num_heads"],
        "mlp_ratio": params["mlp_ratio"],
        "cross_attention_dim": params["cond_dim"],
        "interpolation_scale": params["lewei_scale"],
        "use_quality_token": True,
        "use_frame_quality": False,
        "use_global_quality": False,
        "pool_text": False,
    }


def convert_transformer_state_dict(state_dict: StateDict) -> StateDict:
    """Renames the tensors of the published network for `QAMDTTransformer2DModel`, and accounts for every one.

    The published network has no "unknown" quality: row 0 of the table of quality levels is zero, which leaves levels
    1 to 5 exactly as they were. `pos_embed` holds fixed values that our network computes, and is left out.

    Args:
        state_dict: Tensors under their published names: bare, with the prefix `model.diffusion_model.`, or as the
            moving average names them (`model_ema.diffusion_model`, all dots removed).
    """
    state_dict = _original_transformer_names(state_dict)
    num_blocks = {stack: count_modules(state_dict, rf"{stack}\.(\d+)\.") for stack in _STACKS}
    expected = {*_TRANSFORMER_TENSORS, *_block_names(num_blocks | {"sideblocks": 1})}
    check_names(state_dict.keys() - {"pos_embed"}, expected, "transformer")
    if num_blocks["en_inblocks"] != num_blocks["en_outblocks"]:
        raise ValueError(
            "The transformer must have as many `en_inblocks` as `en_outblocks`, got"
            f" {num_blocks['en_inblocks']} and {num_blocks['en_outblocks']}."
        )

    first_index = {"en_inblocks": 0, "en_outblocks": num_blocks["en_inblocks"]}
    first_index["de_blocks"] = 2 * num_blocks["en_inblocks"]
    converted = {}
    for name, tensor in state_dict.items():
        stack, _, rest = name.partition(".")
        if name == "mos_embed.weight":
            converted[_TRANSFORMER_TENSORS[name]] = torch.cat([torch.zeros_like(tensor[:1]), tensor])
        elif name in _TRANSFORMER_TENSORS:
            converted[_TRANSFORMER_TENSORS[name]] = tensor
        elif stack in _STACKS:
            index, _, rest = rest.partition(".")
            is_side = stack == "sideblocks"
            block = "side_interpolator" if is_side else f"transformer_blocks.{first_index[stack] + int(index)}"
            new_names = _BLOCK_TENSORS[rest]
            for new_name, piece in zip(new_names, tensor.chunk(len(new_names)), strict=True):
                converted[f"{block}.{new_name}"] = piece
    return converted


def _block_names(num_blocks: dict[str, int]) -> set[str]:
    return {
        f"{stack}.{index}.{name}"
        for stack, count in num_blocks.items()
        for index in range(count)
        for name in _BLOCK_TENSORS
        if stack in _STACKS_WITH_SKIP or not name.startswith("skip_linear.")
    }


def _original_transformer_names(state_dict: StateDict) -> StateDict:
    """Strips prefixes, and puts back the dots that the moving average removed from its names."""
    for prefix in ("model.diffusion_model.", "diffusion_model."):
        if any(name.startswith(prefix) for name in state_dict):
            return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    if not any(name.removeprefix("model_ema.").startswith("diffusion_model") for name in state_dict):
        return state_dict

    dotted_names = {name.replace(".", ""): name for name in (*_TRANSFORMER_TENSORS, *_BLOCK_TENSORS)}
    original = {}
    for name, tensor in state_dict.items():
        name = name.removeprefix("model_ema.")
        if name in ("decay", "num_updates"):
            continue
        name = name.removeprefix("diffusion_model")
        block = re.match(rf"({'|'.join(_STACKS)})(\d+)", name)
        start = f"{block[1]}.{block[2]}." if block else ""
        rest = name[block.end() :] if block else name
        original[start + dotted_names.get(rest, rest)] = tensor
    return original


def read_unet_params(config_path: str | os.PathLike) -> dict:
    """Reads the parameters of the network from a published configuration file (YAML)."""
    config = yaml.safe_load(Path(config_path).read_text(encoding="utf-8"))
    try:
        return config["model"]["params"]["unet_config"]["params"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"`config_path` must be a published configuration with `model.params.unet_config.params`, got {config_path}"
        ) from error


def read_checkpoint(checkpoint_path: str | os.PathLike, *, allow_pickle: bool = False) -> StateDict:
    """Maps the tensors of a Lightning checkpoint into memory.

    Args:
        checkpoint_path: The file.
        allow_pickle: Whether the file may run code while it is read. Only for files from people whom you trust.
    """
    path = Path(checkpoint_path)
    if not path.is_file():
        raise FileNotFoundError(f"`checkpoint_path` must be a checkpoint file, got {path}, which does not exist.")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"`checkpoint_path` must be a file that torch.save wrote in its zip format, got {path}, which is not one or"
            " is cut short. Compare its size with the published one and download it again."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds objects other than tensors, and reading them can run code. If you trust where the file is"
            f" from, pass `allow_pickle=True` (`--allow-pickle`). PyTorch says: {error}"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged; download it again. PyTorch says: {error}") from error
    state_dict = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state_dict, dict):
        raise ValueError(f"{path} must be a Lightning checkpoint with an entry `state_dict`, got {type(checkpoint)}.")
    return state_dict


# All that a published checkpoint holds, by the beginnings of its names; the last line is left out.
_CHECKPOINT_PARTS = (
    *("model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_models.0.model.", "scale_factor"),
    *("betas", "alphas_", "sqrt_", "log_one_minus_", "posterior_", "lvlb_weights", "logvar", "clap."),
)


def convert_checkpoint(
    checkpoint_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    unet_params: dict | None = None,
    use_ema: bool = True,
    upsample_rates: tuple[int, ...] = (5, 4, 2, 2, 2),
    text_encoder: str | os.PathLike = "google/flan-t5-large",
    allow_pickle: bool = False,
) -> Path:
    """Converts a published Lightning checkpoint to a folder that `QAMDTPipeline.from_pretrained` reads.

    The network says nothing about a clip of unknown quality. In the folder, level 0 is a copy of level 3, which the
    published sampler takes for the branch without a prompt.

    Args:
        checkpoint_path: The published file.
        output_dir: Folder to write, which must not exist or be empty. Nothing is left there after an error.
        unet_params: Parameters of the network, as `read_unet_params` gives them; `None` for the published ones.
        use_ema: Whether to take the moving average of the network, as the published sampler does.
        upsample_rates: Factor of each upsampling layer of the vocoder; they do not show in its tensors.
        text_encoder: Folder or Hub id of the tokenizer, and of the encoder if the checkpoint has none.
        allow_pickle: Whether the file may run code while it is read. Only for files from people whom you trust.

    Returns:
        The folder.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"`output_dir` must not exist or be an empty folder, got {output_dir}.")
    config = transformer_config_from_original(unet_params or PUBLISHED_UNET_PARAMS)
    state_dict = read_checkpoint(checkpoint_path, allow_pickle=allow_pickle)
    unknown = [name for name in state_dict if not name.startswith(_CHECKPOINT_PARTS)]
    check_names(unknown, (), "checkpoint")
    try:
        tokenizer = AutoTokenizer.from_pretrained(text_encoder)
    except (OSError, ValueError) as error:
        raise ValueError(
            "`text_encoder` must be a folder or the id of a reachable Hub repository with a tokenizer, got"
            f" {str(text_encoder)!r}. ({error})"
        ) from error

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished_dir = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        _build_transformer(state_dict, config, use_ema).save_pretrained(
            unfinished_dir / "transformer", max_shard_size="2GB"
        )
        _build_vae(state_dict).save_pretrained(unfinished_dir / "vae")
        _build_vocoder(state_dict, upsample_rates).save_pretrained(unfinished_dir / "vocoder")
        _build_scheduler(state_dict).save_pretrained(unfinished_dir / "scheduler")
        _build_text_encoder(state_dict, text_encoder).save_pretrained(unfinished_dir / "text_encoder")
        tokenizer.save_pretrained(unfinished_dir / "tokenizer")
        index = _model_index(type(tokenizer).__name__)
        write_json(unfinished_dir / "model_index.json", index)
        unfinished_dir.chmod(0o755)  # mkdtemp made it private
        os.replace(unfinished_dir, output_dir)
    finally:
        shutil.rmtree(unfinished_dir, ignore_errors=True)
    return output_dir


def _filled(model: nn.Module, state_dict: StateDict, what: str) -> nn.Module:
    """Puts tensors into a model that was made without memory for its weights."""
    check_names(state_dict, model.state_dict(), what)
    try:
        model.load_state_dict(state_dict, assign=True)
    except RuntimeError as error:
        raise ValueError(f"The {what} of the checkpoint has other sizes than its configuration: {error}") from error
    return model


def _build_transformer(state_dict: StateDict, config: dict, use_ema: bool) -> QAMDTTransformer2DModel:
    prefix = "model_ema." if use_ema else "model.diffusion_model."
    original = {name: tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    if not original:
        advice = "pass `use_ema=False`" if use_ema else "pass `use_ema=True`"
        raise ValueError(f"The checkpoint has no tensors `{prefix}*`; {advice} to take the other copy of the network.")
    with torch.device("meta"):
        transformer = QAMDTTransformer2DModel(**config)
    _check_positions(state_dict.get("model.diffusion_model.pos_embed"), transformer)
    transformer = _filled(transformer, convert_transformer_state_dict(original), "transformer")
    with torch.no_grad():
        transformer.quality_embed.weight[0] = transformer.quality_embed.weight[3]
    return transformer


def _check_positions(published: torch.Tensor | None, transformer: QAMDTTransformer2DModel):
    """Compares the fixed positions in a checkpoint with ours: they show a grid that no tensor's shape shows."""
    if published is None:
        return
    config, grid_size = transformer.config, transformer.native_grid_size
    positions = transformer.fixed_positions(grid_size, torch.device("cpu"))
    if published.shape[1:] != positions.shape or (published[0].float() - positions).abs().max() > 1e-3:
        raise ValueError(
            "`unet_params` do not fit the positions in the checkpoint (`pos_embed`); check `input_size`, `patch_size`,"
            f" `overlap` and `lewei_scale`, got {config.sample_size}, {config.patch_size}, {config.patch_overlap} and"
            f" {config.interpolation_scale}."
        )


def _build_vae(state_dict: StateDict) -> AutoencoderKL:
    if "scale_factor" not in state_dict:
        raise ValueError("The checkpoint has no `scale_factor`, by which the latents of its autoencoder are scaled.")
    scaling_factor = float(state_dict["scale_factor"])
    with torch.device("meta"):
        vae = AutoencoderKL(**vae_config_from_original(state_dict), scaling_factor=scaling_factor)
    return _filled(vae, convert_vae_state_dict(state_dict), "autoencoder")


def _build_vocoder(state_dict: StateDict, upsample_rates: tuple[int, ...]) -> SpeechT5HifiGan:
    converted = convert_vocoder_state_dict(without_prefix(state_dict, "first_stage_model.vocoder."))
    config = vocoder_config_from_original(converted, upsample_rates, SAMPLING_RATE)
    with torch.device("meta"):
        vocoder = SpeechT5HifiGan(config)
    return _filled(vocoder, converted, "vocoder")


def _build_scheduler(state_dict: StateDict) -> DDIMScheduler:
    """The published sampler, for the noise schedule that the network was trained with."""
    if "betas" not in state_dict:
        raise ValueError("The checkpoint has no `betas`, the noise schedule that its network was trained with.")
    betas = state_dict["betas"].double()
    expected = torch.linspace(betas[0] ** 0.5, betas[-1] ** 0.5, len(betas), dtype=torch.float64) ** 2
    if not torch.allclose(betas, expected, rtol=1e-4):
        raise ValueError("The noise schedule of the checkpoint (`betas`) must have square roots on a straight line.")
    return DDIMScheduler(
        num_train_timesteps=len(betas),
        beta_start=round(betas[0].item(), 8),
        beta_end=round(betas[-1].item(), 8),
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _build_text_encoder(state_dict: StateDict, fallback: str | os.PathLike) -> T5EncoderModel:
    original = without_prefix(state_dict, "cond_stage_models.0.model.")
    if not original:
        return load_complete(T5EncoderModel, fallback)
    with torch.device("meta"):
        text_encoder = T5EncoderModel(text_encoder_config_from_original(original))
    # One table of words under two names.
    original = original | {"encoder.embed_tokens.weight": original["shared.weight"]}
    return _filled(text_encoder, original, "text encoder")


def _model_index(tokenizer_class: str) -> dict:
    return {
        "_class_name": "QAMDTPipeline",
        "_diffusers_version": version("diffusers"),
        "quality_stats": PUBLISHED_QUALITY_STATS.to_dict(),
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": ["qamdt.models.transformer_qamdt", "QAMDTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "vocoder": ["transformers", "SpeechT5HifiGan"],
    }
