"""LoRA adapters of the transformer, loaded and saved as in diffusers' own pipelines."""

from __future__ import annotations

import os
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin


class QAMDTLoraLoaderMixin(LoraBaseMixin):
    """Gives a pipeline `load_lora_weights`, `save_lora_weights` and what builds on them.

    `set_adapters`, `fuse_lora`, `unload_lora_weights` and the like come from diffusers. Needs the package `peft`.
    """

    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        **kwargs,
    ) -> None:
        """Adds an adapter to the transformer.

        Args:
            pretrained_model_name_or_path_or_dict: Folder, Hub id or state dict whose names begin with `transformer.`.
            adapter_name: What to call the adapter; `default_0` and so on when `None`.
            kwargs: Further arguments of `PeftAdapterMixin.load_lora_adapter`, such as `weight_name`.
        """
        self.transformer.load_lora_adapter(
            pretrained_model_name_or_path_or_dict,
            prefix=self.transformer_name,
            adapter_name=adapter_name,
            use_safetensors=True,
            _pipeline=self,
            **kwargs,
        )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        transformer_lora_layers: dict[str, torch.Tensor],
        *,
        weight_name: str | None = None,
        transformer_lora_adapter_metadata: dict | None = None,
    ) -> None:
        """Saves an adapter so that `load_lora_weights` finds it.

        Args:
            save_directory: Folder to write to.
            transformer_lora_layers: The adapter, as `peft.get_peft_model_state_dict(transformer)` returns it.
            weight_name: Name of the file; `pytorch_lora_weights.safetensors` when `None`.
            transformer_lora_adapter_metadata: The adapter's `LoraConfig` as a dictionary.
        """
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={cls.transformer_name: transformer_lora_layers},
            lora_metadata={cls.transformer_name: transformer_lora_adapter_metadata},
            weight_name=weight_name,
        )


def refuse_adapters(components: dict[str, Any]) -> None:
    """Refuses to save a pipeline whose parts have adapters, as a model folder cannot hold them.

    Raises:
        ValueError: There are some.
    """
    for name, part in components.items():
        if getattr(part, "peft_config", None):
            raise ValueError(
                f"`save_pretrained` cannot save the adapters {sorted(part.peft_config)} of the {name}. Save them by "
                "`save_lora_weights`, then `unload_lora_weights`; or make them part of the weights, by `fuse_lora` and "
                "then `unload_lora_weights`."
            )
