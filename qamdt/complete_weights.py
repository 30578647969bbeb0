"""Models whose files hold all of their weights: elsewhere a missing weight is a warning, and then noise or NaN."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from torch import nn


Model = TypeVar("Model", bound=nn.Module)
# A sentence encoder is often saved without the layer that pools its states; nothing here asks for it.
UNUSED_PARTS = ("pooler.",)


def load_complete(model_class: type[Model], source: str | os.PathLike, **options: Any) -> Model:
    """Loads a model, and refuses one that lacks weights.

    Args:
        model_class: A class with the `from_pretrained` of diffusers or transformers.
        source: Folder or Hub id.
        options: Arguments of `from_pretrained`.

    Raises:
        ValueError: Weights of the model are missing; they are named.
    """
    model, info = model_class.from_pretrained(source, output_loading_info=True, **options)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(UNUSED_PARTS))
    if missing:
        raise ValueError(
            f"{os.fspath(source)!r} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]!r}. "
            "Copy or download it again."
        )
    return model


def check_complete(model: nn.Module, folder: Path) -> None:
    """Refuses a model that was loaded from files which lack some of its weights.

    Only the names in the files are read, unless some seem to be missing: then the model's class has the last word, as it
    may keep weights under other names than it has them.

    Raises:
        ValueError: As in `load_complete`.
    """
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= set(tensors.keys())
    if found and not model.state_dict().keys() <= found:
        load_complete(type(model), folder)
