"""Makes a training checkpoint a model that `QAMDTPipeline.from_pretrained` opens, and plays it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin

from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.samplers import note_latent_settings
from pipelines.spectrogram import draw_spectrograms
from qamdt.audio import write_audio
from qamdt.embedded import default_model_dir
from qamdt.keyed_rows import digest_weights
from qamdt.latent_folder import LatentFolder
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.training.config import TrainConfig
from qamdt.training.network import build_model


def find_pipeline(name: str) -> Path:
    """Returns the folder of the pipeline that a setting names by folder, by Hub id, or as `embedded`."""
    if name == "embedded":
        return default_model_dir()
    return Path(name if Path(name).is_dir() else QAMDTPipeline.download(name))


def check_autoencoder(pipeline: str, latents: LatentFolder) -> None:
    """Refuses a pipeline with another autoencoder than the one that made the latents."""
    vae = find_pipeline(pipeline) / "vae"
    if digest_weights(vae) != latents.index["vae_sha256"]:
        raise ValueError(
            f"the latents in {latents.name!r} were made by another autoencoder than the one in {str(vae)!r}; set "
            "`run.pipeline` to the pipeline that has it, or to null to save transformer and scheduler alone."
        )


def save_components(
    pipeline: str,
    folder: Path,
    *,
    name: str,
    transformer: QAMDTTransformer2DModel,
    scheduler: SchedulerMixin,
    scaling_factor: float,
    quality_stats: dict[str, Any] | None,
) -> None:
    """Writes all of a pipeline, its model card included, but the transformer, which a training run adds.

    Args:
        pipeline: Folder or Hub id of a pipeline with the autoencoder that made the latents, or `embedded`.
        folder: Folder to write to.
        name: What the model is called.
        transformer: The network that trains.
        scheduler: Fits the training's noise schedule.
        scaling_factor: What the training multiplies latents with.
        quality_stats: `QualityStats.to_dict()` of the training set.
    """
    pipe = QAMDTPipeline.from_pretrained(find_pipeline(pipeline))
    note_latent_settings(scheduler)
    pipe.scheduler = scheduler
    pipe.register_to_config(quality_stats=quality_stats)
    pipe.vae.register_to_config(scaling_factor=scaling_factor)
    if pipe.config.text_encoder_package is not None:
        pipe.register_modules(text_encoder=None, tokenizer=None)
    pipe.save_config(folder)
    for part, component in pipe.components.items():
        if part != "transformer" and component is not None:
            component.save_pretrained(folder / part)
    pipe.save_card(folder, name, transformer=transformer)


def save_lora(model: QAMDTTransformer2DModel, averages: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes averaged adapters so that `load_lora_weights` finds them."""
    from peft import get_peft_model_state_dict

    QAMDTPipeline.save_lora_weights(
        folder,
        get_peft_model_state_dict(model, state_dict=averages),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )


def open_export(export: Path, config: TrainConfig) -> QAMDTPipeline:
    """Opens what a run exported as a user would: a whole pipeline, or an adapter on top of the one it was made for."""
    if config.lora is None:
        return QAMDTPipeline.from_pretrained(export)
    base = build_model(dataclasses.replace(config, lora=None))
    pipe = QAMDTPipeline.from_pretrained(find_pipeline(config.run.pipeline), transformer=base)
    pipe.load_lora_weights(export)
    return pipe


def render_previews(export: Path, config: TrainConfig, folder: Path, device: torch.device) -> tuple[torch.Tensor, int]:
    """Plays every prompt of `preview` and writes sound files and their spectrograms.

    Args:
        export: What the run exported.
        config: The settings of the run.
        folder: Where the files go.
        device: Where to compute.

    Returns:
        Waveforms `(prompts, samples)`, each made from the same noise at every call, and their sampling rate.
    """
    wanted = config.preview
    pipe = open_export(export, config).to(device)
    pipe.set_progress_bar_config(disable=True)
    waveforms = pipe(
        wanted.prompts,
        quality=wanted.quality,
        audio_length_in_s=wanted.audio_length_in_s,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        generator=[torch.Generator().manual_seed(wanted.seed + number) for number in range(len(wanted.prompts))],
        output_type="pt",
    ).audios.cpu()
    folder.mkdir(parents=True, exist_ok=True)
    for number, waveform in enumerate(waveforms):
        write_audio(folder / f"{number:02d}.wav", waveform, pipe.sampling_rate)
    draw_spectrograms(folder / "spectrograms.png", waveforms, pipe.sampling_rate)
    return waveforms, pipe.sampling_rate
