"""Makes a training checkpoint a model that `QAMDTPipeline.from_pretrained` opens, and plays it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin

from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.config import PreviewConfig
from qamdt.embedded import default_model_dir
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel


def find_model(name: str) -> str:
    """Returns the folder or Hub id that a setting names; `embedded` is the model that ships."""
    return str(default_model_dir()) if name == "embedded" else name


def save_components(
    model: str,
    folder: Path,
    *,
    scheduler: SchedulerMixin,
    scaling_factor: float,
    quality_stats: dict[str, Any] | None,
) -> None:
    """Writes all of a pipeline but the transformer, which a training run adds.

    Args:
        model: Folder or Hub id of a pipeline with the autoencoder that made the latents.
        folder: Folder to write to.
        scheduler: Fits the training's noise schedule.
        scaling_factor: What the training multiplies latents with.
        quality_stats: `QualityStats.to_dict()` of the training set.
    """
    pipe = QAMDTPipeline.from_pretrained(model, scheduler=scheduler, quality_stats=quality_stats)
    pipe.vae.register_to_config(scaling_factor=scaling_factor)
    if pipe.config.text_encoder_package is not None:
        pipe.register_modules(text_encoder=None, tokenizer=None)
    pipe.save_config(folder)
    for name, component in pipe.components.items():
        if name != "transformer" and component is not None:
            component.save_pretrained(folder / name)


def open_checkpoint(checkpoint: Path, pipeline: str, base: QAMDTTransformer2DModel | None) -> QAMDTPipeline:
    """Opens a checkpoint as a pipeline.

    Args:
        checkpoint: The checkpoint; the adapter of one is read as `load_lora_weights` does.
        pipeline: Folder or Hub id of the pipeline that an adapter is for.
        base: The network that an adapter is for; `None` for a checkpoint with a whole network.
    """
    if base is None:
        return QAMDTPipeline.from_pretrained(checkpoint)
    pipe = QAMDTPipeline.from_pretrained(pipeline, transformer=base)
    pipe.load_lora_weights(checkpoint)
    return pipe


@torch.no_grad()
def render_previews(pipe: QAMDTPipeline, config: PreviewConfig, device: str | os.PathLike) -> torch.Tensor:
    """Plays every prompt, each from the same noise at every call; returns waveforms `(prompts, samples)`."""
    pipe.to(device).set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(config.seed + number) for number in range(len(config.prompts))]
    return pipe(
        config.prompts,
        quality=config.quality,
        audio_length_in_s=config.audio_length_in_s,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        generator=generators,
        output_type="pt",
    ).audios.cpu()
