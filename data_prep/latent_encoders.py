"""The autoencoder and the text encoder at work: latents of clips and states of texts, written as shards.

Each function does one process's share; `numbers` are the numbers of the shards that this process may write.
"""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from qamdt import embedded
from qamdt.audio import SAMPLING_RATE, LogMel
from qamdt.complete_weights import load_complete
from qamdt.encoding import samples_per_latent_frame
from qamdt.files import read_json
from qamdt.keyed_rows import digest_weights
from qamdt.models.autoencoder_waveform import AutoencoderWaveform


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_SECONDS_PER_SHARD = 60.0  # what a killed process loses at most
_TOKENIZER_AND_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model")


def describe_autoencoder(folder: Path, dtype: str) -> dict[str, Any]:
    """Returns all that latents depend on beside the clip.

    Args:
        folder: Folder of the autoencoder, of log-mel spectrograms or of waveforms.
        dtype: What it computes in, one of `DTYPES`.
    """
    config = read_autoencoder_config(folder)
    mel = {name: parameter.default for name, parameter in inspect.signature(LogMel).parameters.items()}
    return {
        "vae_sha256": digest_weights(folder),
        "mel": None if _hears_waveforms(config) else mel,
        "peak": 0.5,  # as `normalize_waveform` has it
        "latents_mean": config.get("latents_mean"),
        "latents_std": config.get("latents_std"),
        "dtype": dtype,
    }


def read_autoencoder_config(folder: Path) -> dict[str, Any]:
    """Returns the config of an autoencoder."""
    return read_json(folder / "config.json")


def _hears_waveforms(config: dict[str, Any]) -> bool:
    return config["_class_name"] == "AutoencoderWaveform"


def load_autoencoder(folder: Path, dtype: str) -> tuple[nn.Module, LogMel | None]:
    """Loads an autoencoder, and what its spectrograms are computed with; `None` for one that hears waveforms."""
    if _hears_waveforms(read_autoencoder_config(folder)):
        return load_complete(AutoencoderWaveform, folder, torch_dtype=DTYPES[dtype]).eval(), None
    return load_complete(AutoencoderKL, folder, torch_dtype=DTYPES[dtype]).eval(), LogMel()


def measure_frame_rate(folder: Path) -> float:
    """Returns the latent frames per second of an autoencoder, of which nothing but its config is read."""
    config = read_autoencoder_config(folder)
    with torch.device("meta"):
        if _hears_waveforms(config):
            return config["sampling_rate"] / samples_per_latent_frame(AutoencoderWaveform.from_config(config))
        vae = AutoencoderKL.from_config(config)
    return SAMPLING_RATE / samples_per_latent_frame(vae, LogMel())


def describe_text_encoder(name: str | None, max_tokens: int) -> dict[str, Any]:
    """Returns all that the states of a text depend on beside the text.

    Args:
        name: Folder or Hub id of a text encoder; the embedded one when `None`.
        max_tokens: Where longer texts are cut.
    """
    if name is None:
        encoder = embedded.TEXT_ENCODER_PACKAGE
    elif Path(name).is_dir():
        files = sorted(path for path in Path(name).iterdir() if path.suffix in _TOKENIZER_AND_WEIGHTS)
        encoder = hashlib.sha256(b"".join(_digest(path) for path in files)).hexdigest()
    else:
        encoder = f"{name}@{AutoConfig.from_pretrained(name)._commit_hash}"
    return {"text_encoder": encoder, "max_tokens": max_tokens}


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load_text_encoder(name: str | None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Loads tokenizer and text encoder from a folder or Hub id, or the embedded sentence encoder."""
    if name is None:
        return embedded.load_text_encoder()
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = load_complete(AutoModel, name)
    return tokenizer, (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
