"""Renames the published autoencoder, vocoder and text encoder to diffusers' and transformers' modules.

Sizes are read off the tensors, so these functions need no configuration beside them.
"""

import re
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL
from transformers import SpeechT5HifiGanConfig, T5Config


StateDict = dict[str, torch.Tensor]

_MAX_NAMES_IN_ERROR = 20

# Parts of a residual block and of the attention of the middle block, published name to diffusers' name.
_VAE_LAYERS = {"nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def check_names(given: Iterable[str], expected: Iterable[str], what: str):
    """Raises a `ValueError` that lists missing and surplus names, unless the two sets are equal."""
    given, expected = set(given), set(expected)
    complaints = [
        f"{len(names)} {kind}: {', '.join(sorted(names)[:_MAX_NAMES_IN_ERROR])}"
        + (" ..." if len(names) > _MAX_NAMES_IN_ERROR else "")
        for kind, names in (("missing", expected - given), ("surplus", given - expected))
        if names
    ]
    if complaints:
        raise ValueError(f"The {what} does not have the tensors of the published one; {'; '.join(complaints)}.")


def without_prefix(state_dict: StateDict, prefix: str) -> StateDict:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def count_modules(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the group of `pattern` finds at the beginning of a name."""
    matches = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def convert_vae_state_dict(state_dict: StateDict) -> StateDict:
    """Renames the tensors of the published autoencoder for `diffusers.AutoencoderKL`.

    Args:
        state_dict: Tensors under their published names, with or without the prefix `first_stage_model.` of a whole
            checkpoint. With the prefix, the training loss and the vocoder that stand beside them are left out.

    Returns:
        The tensors for an autoencoder with the configuration that `vae_config_from_original` reads off.
    """
    state_dict = _original_vae_names(state_dict)
    num_levels = count_modules(state_dict, r"decoder\.up\.(\d+)\.")
    converted = {}
    for name, tensor in state_dict.items():
        new_name = _vae_name(name, num_levels)
        # The attention was published as 1x1 convolutions.
        is_attention_matrix = ".mid.attn_1." in name and tensor.ndim == 4
        converted[new_name] = tensor[:, :, 0, 0] if is_attention_matrix else tensor

    with torch.device("meta"):
        expected = AutoencoderKL(**vae_config_from_original(state_dict)).state_dict()
    check_names(converted, expected, "autoencoder")
    return converted


def _original_vae_names(state_dict: StateDict) -> StateDict:
    if any(name.startswith("first_stage_model.") for name in state_dict):
        state_dict = without_prefix(state_dict, "first_stage_model.")
        return {name: tensor for name, tensor in state_dict.items() if not name.startswith(("loss.", "vocoder."))}
    return state_dict


def _vae_name(name: str, num_levels: int) -> str:
    """The name of a tensor in `AutoencoderKL`; an unknown name stays what it is, and is surplus then."""
    if match := re.fullmatch(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.(\w+)\.(\w+)", name):
        half, level, block, layer, kind = match.groups()
        layer = _VAE_LAYERS.get(layer, layer)
        if half == "encoder":
            return f"encoder.down_blocks.{level}.resnets.{block}.{layer}.{kind}"
        # Published levels count from the top; diffusers' blocks count in running order.
        return f"decoder.up_blocks.{num_levels - 1 - int(level)}.resnets.{block}.{layer}.{kind}"
    if match := re.fullmatch(r"encoder\.down\.(\d+)\.downsample\.(.+)", name):
        return f"encoder.down_blocks.{match[1]}.downsamplers.0.{match[2]}"
    if match := re.fullmatch(r"decoder\.up\.(\d+)\.upsample\.(.+)", name):
        return f"decoder.up_blocks.{num_levels - 1 - int(match[1])}.upsamplers.0.{match[2]}"
    if match := re.fullmatch(r"(\w+)\.mid\.block_(\d+)\.(.+)", name):
        return f"{match[1]}.mid_block.resnets.{int(match[2]) - 1}.{match[3]}"
    if match := re.fullmatch(r"(\w+)\.mid\.attn_1\.(\w+)\.(\w+)", name):
        return f"{match[1]}.mid_block.attentions.0.{_VAE_ATTENTION.get(match[2], match[2])}.{match[3]}"
    return re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", name)


def vae_config_from_original(state_dict: StateDict) -> dict:
    """Arguments of `diffusers.AutoencoderKL` for a published autoencoder, read off its tensors."""
    state_dict = _original_vae_names(state_dict)
    num_levels = count_modules(state_dict, r"encoder\.down\.(\d+)\.")
    first_convolutions = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(num_levels)]
    needed = [*first_convolutions, "encoder.conv_in.weight", "decoder.conv_out.weight", "post_quant_conv.weight"]
    check_names(set(needed) & set(state_dict), needed, "autoencoder")
    return {
        "in_channels": state_dict["encoder.conv_in.weight"].shape[1],
        "out_channels": state_dict["decoder.conv_out.weight"].shape[0],
        "down_block_types": ("DownEncoderBlock2D",) * num_levels,
        "up_block_types": ("UpDecoderBlock2D",) * num_levels,
        "block_out_channels": tuple(state_dict[name].shape[0] for name in first_convolutions),
        "layers_per_block": count_modules(state_dict, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": state_dict["post_quant_conv.weight"].shape[0],
        "norm_num_groups": 32,
        "sample_size": 1024,
    }


def convert_vocoder_state_dict(state_dict: StateDict) -> StateDict:
    """Renames the tensors of a HiFi-GAN generator for `transformers.SpeechT5HifiGan`.

    Weight normalisation (`weight_g` times the direction of `weight_v`) is multiplied out.

    Args:
        state_dict: Tensors under their published names, with or without the prefix `first_stage_model.vocoder.`.
    """
    if any(name.startswith("first_stage_model.vocoder.") for name in state_dict):
        state_dict = without_prefix(state_dict, "first_stage_model.vocoder.")
    directions = [name for name in state_dict if name.endswith(".weight_v")]
    magnitudes = [name.removesuffix("_v") + "_g" for name in directions]
    check_names([name for name in state_dict if name.endswith(".weight_g")], magnitudes, "vocoder")

    converted = {}
    for name, tensor in state_dict.items():
        if name in directions:
            name = name.removesuffix("_v")
            norm = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))
            tensor = tensor * (state_dict[name + "_g"] / norm)
        if name not in magnitudes:
            converted[re.sub(r"^ups\.", "upsampler.", name)] = tensor

    # The mean and the scale of the input, which this vocoder does not use.
    if "conv_pre.weight" in converted:
        num_bins = converted["conv_pre.weight"].shape[1]
        converted["mean"], converted["scale"] = torch.zeros(num_bins), torch.ones(num_bins)
    return converted


def vocoder_config_from_original(
    state_dict: StateDict, upsample_rates: tuple[int, ...], sampling_rate: int
) -> SpeechT5HifiGanConfig:
    """Configuration of a converted vocoder, read off its tensors but for what they do not show.

    Args:
        state_dict: What `convert_vocoder_state_dict` returned.
        upsample_rates: Factor of each upsampling layer; together the hop of the log-mel.
        sampling_rate: Of the waveform that comes out.
    """
    num_upsamplers = count_modules(state_dict, r"upsampler\.(\d+)\.")
    if num_upsamplers != len(upsample_rates):
        raise ValueError(
            f"`upsample_rates` must have one factor for each of the {num_upsamplers} upsampling layers of the vocoder,"
            f" got {tuple(upsample_rates)}."
        )
    num_kernels = count_modules(state_dict, r"resblocks\.(\d+)\.") // num_upsamplers
    num_dilations = count_modules(state_dict, r"resblocks\.0\.convs1\.(\d+)\.")
    return SpeechT5HifiGanConfig(
        model_in_dim=state_dict["conv_pre.weight"].shape[1],
        sampling_rate=sampling_rate,
        upsample_initial_channel=state_dict["conv_pre.weight"].shape[0],
        upsample_rates=list(upsample_rates),
        upsample_kernel_sizes=[state_dict[f"upsampler.{i}.weight"].shape[2] for i in range(num_upsamplers)],
        resblock_kernel_sizes=[state_dict[f"resblocks.{i}.convs1.0.weight"].shape[2] for i in range(num_kernels)],
        resblock_dilation_sizes=[list(range(1, 2 * num_dilations, 2))] * num_kernels,  # 1, 3, 5
        normalize_before=False,
    )


def text_encoder_config_from_original(state_dict: StateDict) -> T5Config:
    """Configuration of a T5 encoder (version 1.1, as Flan-T5 is), read off its tensors."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    needed = [
        "shared.weight",
        f"{attention}.q.weight",
        f"{attention}.relative_attention_bias.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
    ]
    check_names(set(needed) & set(state_dict), needed, "text encoder")
    vocab_size, d_model = state_dict["shared.weight"].shape
    num_buckets, num_heads = state_dict[needed[2]].shape
    return T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=state_dict[needed[1]].shape[0] // num_heads,
        d_ff=state_dict[needed[3]].shape[0],
        num_layers=count_modules(state_dict, r"encoder\.block\.(\d+)\."),
        num_heads=num_heads,
        relative_attention_num_buckets=num_buckets,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
