"""What every pipeline of QA-MDT has: its parts, the checks of a call's arguments, denoising and decoding.

Shapes: B batch (prompts times waveforms per prompt), C latent channels, T latent frames, F latent bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, SpeechT5HifiGan

from pipelines.conditioning import ConditioningMixin, count_prompts
from pipelines.denoising import Change, denoise, takes_in_step
from pipelines.guidance import Guidance
from pipelines.input_checks import (
    check_callback,
    check_choices,
    check_count,
    check_embeds,
    check_interval,
    check_number,
    check_tensor,
    check_texts,
    quoted,
)
from pipelines.loading import LoadingMixin
from pipelines.lora import QAMDTLoraLoaderMixin
from pipelines.pipeline_output import QAMDTPipelineOutput
from pipelines.samplers import check_scheduler, noise_settings, note_latent_settings
from qamdt.conditions import Conditions
from qamdt.decoding import decode_latents, latents_to_waveform, mel_to_waveform, samples_per_frame, vae_scale_factor
from qamdt.models.autoencoder_waveform import AutoencoderWaveform
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.models.vocoder_istft import ISTFTVocoder
from qamdt.music import Music
from qamdt.quality import QualityStats


logger = logging.get_logger(__name__)
MAX_STRETCH = 4  # times the length of the clips in training, before a longer clip is worth a warning


class QAMDTPipelineBase(LoadingMixin, ConditioningMixin, DiffusionPipeline, QAMDTLoraLoaderMixin):
    """The parts of a pipeline, and the steps that a call is made of.

    Args:
        vae: Autoencoder of log-mel spectrograms, or of waveforms (`AutoencoderWaveform`).
        text_encoder: Encoder of prompts; `None` if calls bring `prompt_embeds`.
        tokenizer: Its tokenizer.
        transformer: The denoising network.
        scheduler: Any scheduler of diffusers' Karras family with the network's noise schedule, or, for a network that
            was trained as a flow, `FlowMatchEulerDiscreteScheduler`.
        vocoder: Maps log-mel `(batch, frames, mel_bins)` to `(batch, samples)`; `None` if `vae` makes waveforms.
        quality_stats: `QualityStats.to_dict()` of the training set; without it `quality` can only be a word.
        text_encoder_package: The Python package that holds the text encoder, for a model saved without.
        max_text_tokens: Longer prompts are cut off.
        max_audio_length_in_s: The longest clip that may be asked for.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae->vocoder"
    _optional_components = ["text_encoder", "tokenizer", "vocoder"]
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderWaveform,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        transformer: QAMDTTransformer2DModel,
        scheduler: SchedulerMixin,
        vocoder: ISTFTVocoder | SpeechT5HifiGan | None,
        quality_stats: dict[str, Any] | None = None,
        text_encoder_package: str | None = None,
        max_text_tokens: int = 128,
        max_audio_length_in_s: float = 600.0,
    ):
        super().__init__()
        check_count("max_text_tokens", max_text_tokens)
        check_number("max_audio_length_in_s", max_audio_length_in_s, is_open=True)
        if not isinstance(scheduler, SchedulerMixin):
            raise ValueError(f"`scheduler` must be a scheduler of diffusers, got {scheduler!r}.")
        if (vocoder is None) != isinstance(vae, AutoencoderWaveform):
            raise ValueError(
                "`vocoder` must be None for an autoencoder of waveforms and given for one of spectrograms, got "
                f"{type(vocoder).__name__} beside {type(vae).__name__}."
            )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=scheduler,
            vocoder=vocoder,
        )
        self.register_to_config(
            quality_stats=quality_stats,
            text_encoder_package=text_encoder_package,
            max_text_tokens=max_text_tokens,
            max_audio_length_in_s=max_audio_length_in_s,
        )
        self._quality_stats = None if quality_stats is None else QualityStats.from_dict(dict(quality_stats))
        note_latent_settings(scheduler)
        self._noise_settings = noise_settings(scheduler)
        self._guidance_scales = []
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveforms, in Hz."""
        return (self.vae if self.vocoder is None else self.vocoder).config.sampling_rate

    @property
    def quality_stats(self) -> QualityStats | None:
        """Where the quality levels of the model begin; `None` if unknown."""
        return self._quality_stats

    @property
    def native_audio_length_in_s(self) -> float:
        """The length of clips that the network was built for, in seconds."""
        return self.transformer.config.sample_size[0] * self._latent_frame_in_s

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the running (or last) call is guided."""
        return bool(self._guidance_scales)

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the running (or last) call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to leave the remaining steps out."""
        return self._interrupt

    @property
    def _samples_per_latent_frame(self) -> int:
        if self.vocoder is None:
            return self.vae.samples_per_latent_frame
        return vae_scale_factor(self.vae) * samples_per_frame(self.vocoder)

    @property
    def _latent_frame_in_s(self) -> float:
        return self._samples_per_latent_frame / self.sampling_rate

    def num_latent_frames(self, audio_length_in_s: float) -> int:
        """Latent frames that cover so many seconds and that whole patches cover."""
        num_samples = round(audio_length_in_s * self.sampling_rate)
        num_frames = math.ceil(num_samples / self._samples_per_latent_frame)
        patch_size, overlap = self.transformer.config.patch_size[0], self.transformer.config.patch_overlap[0]
        num_patches = max(1, math.ceil((num_frames - overlap) / (patch_size - overlap)))
        return num_patches * (patch_size - overlap) + overlap

    def check_inputs(
        self,
        *,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str],
        audio_length_in_s: float,
        num_inference_steps: int,
        guidance_scale: float,
        quality_guidance_scale: float | None,
        guidance_interval: tuple[float, float],
        num_waveforms_per_prompt: int,
        eta: float,
        prompt_embeds: torch.Tensor | None,
        prompt_attention_mask: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        negative_prompt_attention_mask: torch.Tensor | None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str],
        output_type: str,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
    ) -> None:
        """Refuses arguments of a call that make no sense, and a scheduler that does not fit the network."""
        check_scheduler(self.scheduler, self._noise_settings)
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError(
                f"Pass either `prompt` or `prompt_embeds`, got {'neither' if prompt is None else 'both'}."
            )
        text_dim = self.transformer.config.cross_attention_dim
        if prompt_embeds is None:
            check_texts("prompt", prompt)
        else:
            check_embeds("prompt", prompt_embeds, prompt_attention_mask, text_dim)
        num_prompts = count_prompts(prompt, prompt_embeds)
        check_texts("negative_prompt", negative_prompt, num_prompts)
        if negative_prompt_embeds is not None:
            check_embeds(
                "negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask, text_dim, num_prompts
            )

        self._check_length(audio_length_in_s)
        check_count("num_inference_steps", num_inference_steps, self.scheduler.config.num_train_timesteps)
        check_count("num_waveforms_per_prompt", num_waveforms_per_prompt)
        check_number("guidance_scale", guidance_scale)
        if quality_guidance_scale is not None:
            check_number("quality_guidance_scale", quality_guidance_scale)
        check_interval("guidance_interval", guidance_interval)
        check_number("eta", eta, maximum=1)
        if eta and not takes_in_step(self.scheduler, "eta"):
            raise ValueError(
                f"`eta` must be 0 for {type(self.scheduler).__name__}, got {eta!r}; DDIMScheduler takes it."
            )
        check_choices("output_type", [output_type], ["np", "pt", "latent"])
        check_callback("callback_on_step_end", callback_on_step_end)
        check_choices(
            "callback_on_step_end_tensor_inputs", callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )

    def _check_length(self, audio_length_in_s: float) -> None:
        """Refuses a length that no clip can have, and warns of one that the network never heard."""
        check_number("audio_length_in_s", audio_length_in_s, maximum=self.config.max_audio_length_in_s, is_open=True)
        if round(audio_length_in_s * self.sampling_rate) < 1:
            raise ValueError(
                f"`audio_length_in_s` must be at least one sample, {1 / self.sampling_rate:g} s, got {audio_length_in_s!r}."
            )
        if audio_length_in_s > MAX_STRETCH * self.native_audio_length_in_s:
            logger.warning(
                f"`audio_length_in_s` is {audio_length_in_s:g}, and the network was trained on clips of "
                f"{self.native_audio_length_in_s:.4g} s: the longer a clip, the less of it hangs together, and the time "
                "for a step grows with the square of its length."
            )

    def prepare_latents(
        self,
        batch_size: int,
        num_latent_frames: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """Draws initial noise `(batch, channels, latent_frames, latent_bins)`, or takes the given one.

        It is float32 whatever the dtype of the network, so that a seed means the same noise for all.
        """
        config = self.transformer.config
        shape = (batch_size, config.in_channels, num_latent_frames, config.sample_size[1])
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        check_tensor("latents", latents)
        if latents.shape != shape:
            raise ValueError(f"`latents` must have shape {shape} for this call, got {tuple(latents.shape)}.")
        # A flow begins at noise of variance one, and its scheduler says nothing about that.
        return latents.to(self._execution_device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: Guidance,
        *,
        eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
        constrain: Change | None = None,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str],
    ) -> torch.Tensor:
        """Takes noise out of latents with a progress bar, and with a callback as diffusers has it.

        Args:
            latents: Latents `(batch, channels, latent_frames, latent_bins)` at the first of `timesteps`.
            timesteps: The scheduler's timesteps, or the last of them.
            guidance: What the network is told.
            eta: As in a call.
            generator: As in a call.
            constrain: As in `pipelines.denoising.denoise`.
            callback_on_step_end: As in a call.
            callback_on_step_end_tensor_inputs: As in a call.
        """
        self._guidance_scales = guidance.scales
        self._num_timesteps = len(timesteps)
        self._interrupt = False

        def call_back(latents: torch.Tensor, step: int, timestep: torch.Tensor) -> torch.Tensor:
            tensors = {"latents": latents, "prompt_embeds": guidance.wanted.texts}
            tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
            replaced = self._check_replaced(callback_on_step_end(self, step, timestep, tensors), latents)
            if "prompt_embeds" in replaced:
                guidance.replace_texts(replaced["prompt_embeds"])
            return replaced.get("latents", latents)

        return denoise(
            self._predict,
            self.scheduler,
            latents,
            self.progress_bar(timesteps),
            guidance,
            eta=eta,
            generator=generator,
            constrain=constrain,
            callback=None if callback_on_step_end is None else call_back,
            is_interrupted=lambda: self.interrupt,
        )

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Turns latents `(batch, channels, latent_frames, latent_bins)` into waveforms `(batch, samples)`."""
        if self.vocoder is None:
            return latents_to_waveform(self.vae, latents.to(self.vae.dtype))
        mel_spectrogram = decode_latents(self.vae, latents.to(self.vae.dtype))
        return mel_to_waveform(self.vocoder, mel_spectrogram.to(self.vocoder.dtype)).float()

    def finish(
        self,
        latents: torch.Tensor,
        audio_length_in_s: float,
        music: list[Music] | None,
        *,
        output_type: str,
        return_dict: bool,
    ) -> QAMDTPipelineOutput | tuple[np.ndarray | torch.Tensor]:
        """Ends a call: returns latents in the form that is asked for, and lets go of the parts that are offloaded."""
        if output_type == "latent":
            audios = _check_finite(latents, "transformer")
        else:
            audios = self.decode(_check_finite(latents, "transformer"))  # (B, samples)
            audios = _check_finite(audios, "decoder")[:, : round(audio_length_in_s * self.sampling_rate)]
            audios = audios.cpu().numpy() if output_type == "np" else audios
        self.maybe_free_model_hooks()
        return QAMDTPipelineOutput(audios=audios, music=music) if return_dict else (audios,)

    def _check_replaced(self, replaced: Any, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """Refuses what a callback must not return."""
        if replaced is None:
            return {}
        if not isinstance(replaced, dict) or not replaced.keys() <= set(self._callback_tensor_inputs):
            raise ValueError(
                "`callback_on_step_end` must return None or a dictionary with some of "
                f"{', '.join(map(repr, self._callback_tensor_inputs))}, got {quoted(replaced)}."
            )
        if (shape := getattr(replaced.get("latents", latents), "shape", None)) != latents.shape:
            raise ValueError(
                f"`callback_on_step_end` must return latents of shape {tuple(latents.shape)}, got {shape and tuple(shape)}."
            )
        return replaced

    def _predict(
        self, model_input: torch.Tensor, timestep: torch.Tensor, branches: Sequence[Conditions]
    ) -> Sequence[torch.Tensor]:
        """Runs the network once for all branches and returns the output of each, in float32."""
        dtype = self.transformer.dtype
        told = Conditions.cat(branches).to(dtype=dtype).for_model(self.transformer.config)
        if told["encoder_attention_mask"].all():
            told["encoder_attention_mask"] = None  # attention may then run on kernels that know no mask
        model_input = torch.cat([model_input] * len(branches)).to(dtype)  # (branches * B, C, T, F)
        with self.transformer.cache_context("cond" if len(branches) == 1 else "cond_uncond"):
            model_output = self.transformer(
                hidden_states=model_input,
                timestep=timestep.expand(len(model_input)),
                **told,
                return_dict=False,
            )[0]
        return model_output.float().chunk(len(branches))


def _check_finite(values: torch.Tensor, part: str) -> torch.Tensor:
    """Returns what a part made, and refuses NaN and infinity: a file of them is silence or a bang."""
    if not values.isfinite().all():
        raise RuntimeError(
            f"the {part} gave values that are not finite. Its weights are damaged, or its precision is too small for "
            "them: load the model again, with `dtype=torch.float32`."
        )
    return values
