"""Converts an original LAION CLAP checkpoint to a folder that `ClapModel` of transformers loads.

    python -m whisq.convert_clap music_audioset_epoch_15_esc_90.14.pt clap-music --tokenizer roberta-base

The published .pt files are pickles. They are read as plain tensors and numbers; one that holds anything else is
refused, so a checkpoint of a stranger runs no code. What is written is safetensors and JSON.
"""

import argparse
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

from qamdt.outputs import check_output_folder, has_fields


# Beside tensors the published files hold numbers of numpy (the best losses, the epoch).
_NUMBERS = [np._core.multiarray.scalar, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
_AUDIO_MODELS = {96: "HTSAT-tiny", 128: "HTSAT-base", 256: "HTSAT-large"}

_RENAMED = (
    (r"^text_branch\.", "text_model."),
    (r"^audio_branch\.bn0\.", "audio_model.audio_encoder.batch_norm."),
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"^(text|audio)_projection\.0\.", r"\1_projection.linear1."),
    (r"^(text|audio)_projection\.2\.", r"\1_projection.linear2."),
    (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.output.dense."),
    (r"(blocks\.\d+)\.attn\.", r"\1.attention.self."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)
# Parts that embedding does not use: front ends that are computed, the classifier, and layers of other uses of CLAP.
_UNUSED = re.compile(
    r"^(?:audio|text)_transform\.|^audio_branch\.(?:spectrogram_extractor|logmel_extractor|tscam_conv|head)\.|attn_mask$"
)


@dataclass(frozen=True, kw_only=True)
class LaionNetwork:
    """Which of LAION's networks a checkpoint belongs to, as its weights show.

    Args:
        audio_model: LAION's name of the audio encoder.
        has_fusion: Whether it was trained with feature fusion.
        width: Channels of the first stage of the audio encoder.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        text_layers: Layers of the text encoder.
    """

    audio_model: str
    has_fusion: bool
    width: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    text_layers: int


def read_laion_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads the weights of a LAION checkpoint, .pt or .safetensors, without running code from it.

    Raises:
        ValueError: The file holds more than weights and numbers, or no weights of CLAP.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a LAION checkpoint, got {str(path)!r}, which does not exist.")
    if path.suffix == ".safetensors":
        checkpoint = load_file(path)
    else:
        try:
            with torch.serialization.safe_globals(_NUMBERS):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{str(path)!r} is no file of plain weights and is not read: {error}") from error
    weights = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    weights.pop("text_branch.embeddings.position_ids", None)  # counted, not learned; newer versions have none
    if "audio_branch.patch_embed.proj.weight" not in weights:
        raise ValueError(f"{str(path)!r} holds no CLAP with an HTSAT audio encoder; got {sorted(weights)[:3]}.")
    return weights


def describe_laion_weights(weights: dict[str, torch.Tensor]) -> LaionNetwork:
    """Says which network weights belong to."""
    width = weights["audio_branch.patch_embed.proj.weight"].shape[0]
    tables = {
        tuple(map(int, re.findall(r"\d+", name))): tensor.shape[1]
        for name, tensor in weights.items()
        if name.endswith("relative_position_bias_table")
    }
    stages = sorted({stage for stage, _ in tables})
    text_layers = {int(m.group(1)) for name in weights if (m := re.match(r"text_branch\.encoder\.layer\.(\d+)", name))}
    return LaionNetwork(
        audio_model=_AUDIO_MODELS.get(width, f"HTSAT of width {width}"),
        has_fusion=any("fusion_model" in name for name in weights),
        width=width,
        depths=tuple(sum(s == stage for s, _ in tables) for stage in stages),
        num_heads=tuple(tables[stage, 0] for stage in stages),
        text_layers=len(text_layers),
    )


def convert_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames LAION's weights to those of `ClapModel`, which has query, key and value apart."""
    converted = {}
    for name, tensor in weights.items():
        if _UNUSED.search(name):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if ".qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                converted[name.replace("qkv", part)] = piece.clone()
        else:
            converted[name] = tensor
    return converted


def build_model(weights: dict[str, torch.Tensor]) -> ClapModel:
    """Builds the `ClapModel` of LAION's weights; every one of them finds its place or is known to be unused."""
    network = describe_laion_weights(weights)
    words = weights["text_branch.embeddings.word_embeddings.weight"]
    config = ClapConfig(
        text_config={
            "vocab_size": words.shape[0],
            "hidden_size": words.shape[1],
            "num_hidden_layers": network.text_layers,
            "num_attention_heads": words.shape[1] // 64,
            "intermediate_size": weights["text_branch.encoder.layer.0.intermediate.dense.weight"].shape[0],
            "max_position_embeddings": weights["text_branch.embeddings.position_embeddings.weight"].shape[0],
            "layer_norm_eps": 1e-5,  # that of RoBERTa
        },
        audio_config={
            "patch_embeds_hidden_size": network.width,
            "hidden_size": network.width * 2 ** (len(network.depths) - 1),
            "depths": network.depths,
            "num_attention_heads": network.num_heads,
            "enable_fusion": network.has_fusion,
            "fusion_type": "aff_2d" if network.has_fusion else None,
        },
        projection_dim=weights["text_projection.0.weight"].shape[0],
    )
    model = ClapModel(config)
    converted = convert_weights(weights)
    computed = {name for name in model.state_dict() if name.endswith(("position_ids", "token_type_ids"))}
    missing, unexpected = model.load_state_dict(converted, strict=False)
    if set(missing) - computed or unexpected:
        raise ValueError(
            f"the weights do not fit `ClapModel`: {len(set(missing) - computed)} missing "
            f"({sorted(set(missing) - computed)[:3]}), {len(unexpected)} unexpected ({sorted(unexpected)[:3]})."
        )
    return model.eval()


def build_feature_extractor(has_fusion: bool) -> ClapFeatureExtractor:
    """Builds the audio front end of LAION's models."""
    return ClapFeatureExtractor(frequency_min=50, truncation="fusion" if has_fusion else "rand_trunc")


def convert(checkpoint: str | Path, folder: str | Path, tokenizer: str) -> None:
    """Writes a LAION checkpoint as a folder for `ClapModel`, with its front ends."""
    weights = read_laion_weights(checkpoint)
    is_ours = has_fields(Path(folder) / "config.json", ["model_type", "audio_config"])
    check_output_folder(folder, ["*.json", "*.safetensors", "*.txt"], is_ours=is_ours)
    build_model(weights).save_pretrained(folder)
    build_feature_extractor(describe_laion_weights(weights).has_fusion).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="LAION's file, .pt or .safetensors")
    parser.add_argument("folder", help="where the converted model goes")
    parser.add_argument("--tokenizer", default="roberta-base", help="folder or Hub id (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        convert(**vars(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
