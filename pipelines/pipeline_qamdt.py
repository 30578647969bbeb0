"""Music from text with QA-MDT, at the quality asked for.

    from pipelines.pipeline_qamdt import QAMDTPipeline

    QAMDTPipeline("a calm piano ballad", quality="high").audios[0]  # the default model, loaded once

    pipe = QAMDTPipeline.from_pretrained("a folder or Hub id")
    pipe("a calm piano ballad", quality=[2.0, 4.5], audio_length_in_s=20)  # the quality rises

Shapes: B batch (prompts times waveforms per prompt), C latent channels, T latent frames, F latent bins,
L text tokens, D text width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import AudioPipelineOutput, AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, SpeechT5HifiGan

from pipelines.guidance import guide
from pipelines.input_checks import (
    check_choices,
    check_count,
    check_embeds,
    check_generator,
    check_interval,
    check_number,
    check_texts,
)
from pipelines.loading import GenerateWhenCalledWithPrompt, LoadingMixin
from pipelines.lora import QAMDTLoraLoaderMixin
from pipelines.quality_conditioning import Quality, QualityCondition, add_prefixes, resolve_qualities
from pipelines.samplers import scale_model_input
from qamdt.conditions import Conditions
from qamdt.decoding import decode_latents, mel_to_waveform, samples_per_frame, vae_scale_factor
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.models.vocoder_istft import ISTFTVocoder
from qamdt.quality import QualityStats


logger = logging.get_logger(__name__)


class QAMDTPipeline(LoadingMixin, DiffusionPipeline, QAMDTLoraLoaderMixin, metaclass=GenerateWhenCalledWithPrompt):
    """Generates music from text prompts with the quality-aware masked diffusion transformer.

    Called on the class with a prompt, it loads the default model once and generates with it.

    Args:
        vae: Autoencoder of log-mel spectrograms.
        text_encoder: Encoder of prompts; `None` if calls bring `prompt_embeds`.
        tokenizer: Its tokenizer.
        transformer: The denoising network.
        scheduler: Any scheduler of diffusers' Karras family with the network's noise schedule, or, for a network that
            was trained as a flow, `FlowMatchEulerDiscreteScheduler`.
        vocoder: Maps log-mel `(batch, frames, mel_bins)` to `(batch, samples)`.
        quality_stats: `QualityStats.to_dict()` of the training set; without it `quality` can only be a word.
        text_encoder_package: The Python package that holds the text encoder, for a model saved without.
        max_text_tokens: Longer prompts are cut off.
        max_audio_length_in_s: The longest clip that may be asked for.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae->vocoder"
    _optional_components = ["text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        transformer: QAMDTTransformer2DModel,
        scheduler: SchedulerMixin,
        vocoder: ISTFTVocoder | SpeechT5HifiGan,
        quality_stats: dict[str, Any] | None = None,
        text_encoder_package: str | None = None,
        max_text_tokens: int = 128,
        max_audio_length_in_s: float = 600.0,
    ):
        super().__init__()
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
        self._guidance_scales = []
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveforms, in Hz."""
        return self.vocoder.config.sampling_rate

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
        return vae_scale_factor(self.vae) * samples_per_frame(self.vocoder)

    @property
    def _latent_frame_in_s(self) -> float:
        return self._samples_per_latent_frame / self.sampling_rate

    def encode_prompt(self, prompt: str | list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes texts as they stand, without a quality prefix.

        Returns:
            Text states of shape `(batch, text_tokens, dim)`, and a mask `(batch, text_tokens)`, true for real tokens.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "This pipeline has no text encoder; pass `prompt_embeds` and `negative_prompt_embeds`, or give "
                "`text_encoder` and `tokenizer` to `from_pretrained`."
            )
        texts = [prompt] if isinstance(prompt, str) else prompt
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.config.max_text_tokens,
            return_tensors="pt",
        ).to(self._execution_device)
        for text, mask in zip(texts, tokens.attention_mask, strict=True):
            if mask.sum() >= self.config.max_text_tokens:
                logger.warning(f"Prompts are cut off after {self.config.max_text_tokens} tokens; got {text!r}.")
        states = self.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return states.last_hidden_state, tokens.attention_mask.bool()

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
        elif latents.shape != shape:
            raise ValueError(f"`latents` must have shape {shape} for this call, got {tuple(latents.shape)}.")
        # A flow begins at noise of variance one, and its scheduler says nothing about that.
        return latents.to(self._execution_device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Turns latents `(batch, channels, latent_frames, latent_bins)` into waveforms `(batch, samples)`."""
        mel_spectrogram = decode_latents(self.vae, latents.to(self.vae.dtype))
        return mel_to_waveform(self.vocoder, mel_spectrogram.to(self.vocoder.dtype)).float()

    def num_latent_frames(self, audio_length_in_s: float) -> int:
        """Latent frames that cover so many seconds and that whole patches cover."""
        num_samples = round(audio_length_in_s * self.sampling_rate)
        num_frames = math.ceil(num_samples / self._samples_per_latent_frame)
        patch_size, overlap = self.transformer.config.patch_size[0], self.transformer.config.patch_overlap[0]
        num_patches = max(1, math.ceil((num_frames - overlap) / (patch_size - overlap)))
        return num_patches * (patch_size - overlap) + overlap

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        quality: Quality | list[Quality] = "high",
        negative_prompt: str | list[str] = "",
        negative_quality: Quality | list[Quality] = "medium",
        audio_length_in_s: float | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.5,
        quality_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_waveforms_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
        output_type: str = "np",
        return_dict: bool = True,
    ) -> AudioPipelineOutput | tuple[np.ndarray | torch.Tensor]:
        """Generates music.

        Args:
            prompt: What to play. The quality is put in front of it as text; an empty prompt stays empty.
            quality: `"high"`, `"medium"`, `"low"`; a score (MOS) from 1 to 5; a curve over the clip, as a list of
                scores that are spread over it or of `(second, score)` tuples; or `None` for unknown. A list of
                anything else is one of these for each prompt, such as `["high", 3.2]` or `[[2.0, 4.5], [3.0]]`.
            negative_prompt: What guidance moves away from, taken as it stands.
            negative_quality: The quality that guidance moves away from. `"medium"` is the published choice.
            audio_length_in_s: Length of the waveforms in seconds; what the network was built for when `None`.
            num_inference_steps: Denoising steps; more are slower and usually better.
            guidance_scale: How far to move away from the negative prompt and quality; 1 turns guidance off, and the
                network then runs once per step and not on a double batch.
            quality_guidance_scale: Separates guidance by quality from guidance by text. `guidance_scale` then acts
                against the negative prompt at the quality asked for, and this one against the prompt at the
                negative quality. `None` guides by both at once, as published.
            guidance_interval: First and last part of the schedule that is guided, as fractions from 0 (pure noise)
                to 1; the other steps cost half.
            num_waveforms_per_prompt: Waveforms for each prompt, in a row in the result.
            eta: Share of fresh noise in every step, for `DDIMScheduler` only.
            generator: Source of all randomness; a list gives each waveform its own.
            latents: Initial noise of shape `(batch, channels, latent_frames, latent_bins)` instead of drawn noise.
            prompt_embeds: Text states `(prompts, text_tokens, dim)` instead of `prompt`, quality prefix included.
            prompt_attention_mask: Shape `(prompts, text_tokens)`, true for real tokens; all of them when `None`.
            negative_prompt_embeds: Text states instead of `negative_prompt`.
            negative_prompt_attention_mask: Its mask; all real when `None`.
            callback_on_step_end: Called after every step as `callback(pipeline, step, timestep, tensors)`. Tensors
                that it returns in a dictionary take the place of the ones it was given.
            callback_on_step_end_tensor_inputs: Names of the tensors it is given: "latents", "prompt_embeds".
            output_type: `"np"` and `"pt"` for waveforms of shape `(batch, samples)` with samples between about -1 and
                1, `"latent"` for scaled latents.
            return_dict: Whether to return an output object rather than a tuple.

        Returns:
            `AudioPipelineOutput` with `audios`, or a tuple with them.
        """
        if audio_length_in_s is None:
            audio_length_in_s = self.native_audio_length_in_s
        self.check_inputs(
            prompt=prompt,
            negative_prompt=negative_prompt,
            audio_length_in_s=audio_length_in_s,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            quality_guidance_scale=quality_guidance_scale,
            guidance_interval=guidance_interval,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
            eta=eta,
            prompt_embeds=prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_embeds=negative_prompt_embeds,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            output_type=output_type,
        )
        num_prompts = _count_prompts(prompt, prompt_embeds)
        batch_size = num_prompts * num_waveforms_per_prompt
        check_generator(generator, batch_size)

        # Quality of every clip, as it should be and as guidance avoids it.
        num_latent_frames = self.num_latent_frames(audio_length_in_s)
        frame_times = np.minimum((np.arange(num_latent_frames) + 0.5) * self._latent_frame_in_s, audio_length_in_s)
        wanted, unwanted = (
            resolve_qualities(
                value, self.quality_stats, frame_times, audio_length_in_s, num_prompts=num_prompts, name=name
            )
            for name, value in (("quality", quality), ("negative_quality", negative_quality))
        )

        # Branches of guidance: the conditional one, then those that it moves away from, each with a scale.
        prompts = prompt if isinstance(prompt, list) else [prompt or ""] * num_prompts
        negative_prompts = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt] * num_prompts
        states = (prompt_embeds, prompt_attention_mask)
        negative_states = (negative_prompt_embeds, negative_prompt_attention_mask)
        branches = [self._branch(add_prefixes(prompts, wanted), *states, wanted)]
        if guidance_scale != 1:
            avoided = unwanted if quality_guidance_scale is None else wanted
            branches.append(self._branch(negative_prompts, *negative_states, avoided))
        if quality_guidance_scale not in (None, 1):
            branches.append(self._branch(add_prefixes(prompts, unwanted), *states, unwanted))
        branches = [branch.repeat(num_waveforms_per_prompt) for branch in branches]
        scales = [scale for scale in (guidance_scale, quality_guidance_scale) if scale not in (None, 1)]
        self._guidance_scales = scales

        # Initial noise.
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        self._interrupt = False
        latents = self.prepare_latents(batch_size, num_latent_frames, generator, latents)  # (B, C, T, F)

        # Denoise.
        step_arguments = self._step_arguments(eta, generator)
        first_guided, last_guided = (fraction * len(timesteps) for fraction in guidance_interval)
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                is_guided = self.do_classifier_free_guidance and first_guided <= step < last_guided
                model_input = scale_model_input(self.scheduler, latents, timestep)
                model_output = self._predict(model_input, timestep, branches if is_guided else branches[:1])
                model_output = guide(model_output, scales if is_guided else [])
                latents = self.scheduler.step(model_output, timestep, latents, **step_arguments, return_dict=False)[0]

                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "prompt_embeds": branches[0].texts}
                    tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    replaced = callback_on_step_end(self, step, timestep, tensors) or {}
                    latents = replaced.get("latents", latents)
                    branches[0] = replace(branches[0], texts=replaced.get("prompt_embeds", branches[0].texts))
                progress_bar.update()

        # Decode.
        if output_type == "latent":
            audios = latents
        else:
            audios = self.decode(latents)[:, : round(audio_length_in_s * self.sampling_rate)]  # (B, samples)
            audios = audios.cpu().numpy() if output_type == "np" else audios
        self.maybe_free_model_hooks()
        return AudioPipelineOutput(audios=audios) if return_dict else (audios,)

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
    ) -> None:
        """Refuses arguments of a call that make no sense."""
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError(
                f"Pass either `prompt` or `prompt_embeds`, got {'neither' if prompt is None else 'both'}."
            )
        text_dim = self.transformer.config.cross_attention_dim
        if prompt_embeds is None:
            check_texts("prompt", prompt)
        else:
            check_embeds("prompt", prompt_embeds, prompt_attention_mask, text_dim)
        num_prompts = _count_prompts(prompt, prompt_embeds)
        check_texts("negative_prompt", negative_prompt, num_prompts)
        if negative_prompt_embeds is not None:
            check_embeds(
                "negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask, text_dim, num_prompts
            )

        check_number("audio_length_in_s", audio_length_in_s, maximum=self.config.max_audio_length_in_s, is_open=True)
        check_count("num_inference_steps", num_inference_steps, self.scheduler.config.num_train_timesteps)
        check_count("num_waveforms_per_prompt", num_waveforms_per_prompt)
        check_number("guidance_scale", guidance_scale)
        if quality_guidance_scale is not None:
            check_number("quality_guidance_scale", quality_guidance_scale)
        check_interval("guidance_interval", guidance_interval)
        check_number("eta", eta, maximum=1)
        if eta and not self._scheduler_takes("eta"):
            raise ValueError(
                f"`eta` must be 0 for {type(self.scheduler).__name__}, got {eta!r}; DDIMScheduler takes it."
            )
        check_choices("output_type", [output_type], ["np", "pt", "latent"])
        check_choices(
            "callback_on_step_end_tensor_inputs", callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )

    def _branch(
        self,
        texts: list[str],
        embeds: torch.Tensor | None,
        mask: torch.Tensor | None,
        qualities: list[QualityCondition],
    ) -> Conditions:
        """Collects what one branch of guidance is told; texts are encoded unless their states are given."""
        device = self._execution_device
        if embeds is None:
            embeds, mask = self.encode_prompt(texts)
        elif mask is None:
            mask = torch.ones(embeds.shape[:2])
        levels = torch.tensor([quality.level for quality in qualities])
        frame_levels = torch.from_numpy(np.stack([quality.frame_levels for quality in qualities]))
        # The level of a clip is also that of the data set it would be from.
        conditions = Conditions(
            texts=embeds, mask=mask.bool(), levels={"clip": levels, "global": levels}, curves={"quality": frame_levels}
        )
        return conditions.to(device)

    def _predict(self, model_input: torch.Tensor, timestep: torch.Tensor, branches: list[Conditions]) -> torch.Tensor:
        """Runs the network once for all branches; the outputs lie behind one another, in float32."""
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
        return model_output.float()

    def _step_arguments(self, eta: float, generator: torch.Generator | list[torch.Generator] | None) -> dict[str, Any]:
        """The arguments that only some schedulers take in a step."""
        arguments = {"eta": eta, "generator": generator}
        return {name: value for name, value in arguments.items() if self._scheduler_takes(name)}

    def _scheduler_takes(self, argument: str) -> bool:
        return argument in inspect.signature(self.scheduler.step).parameters


def _count_prompts(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> int:
    if prompt_embeds is not None:
        return len(prompt_embeds)
    return 1 if isinstance(prompt, str) else len(prompt)
