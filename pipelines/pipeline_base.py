"""What every pipeline of QA-MDT has: its parts, the checks of a call's arguments, denoising and decoding.

Shapes: B batch (prompts times waveforms per prompt), C latent channels, T latent frames, F latent bins.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, SpeechT5HifiGan

from pipelines.call import Call
from pipelines.call_checks import CallChecksMixin, check_finite, check_replaced
from pipelines.conditioning import ConditioningMixin
from pipelines.denoising import Change, add_noise, denoise
from pipelines.guidance import Guidance
from pipelines.input_checks import check_count, check_number, check_tensor
from pipelines.loading import LoadingMixin
from pipelines.lora import QAMDTLoraLoaderMixin
from pipelines.model_limits import ModelLimits
from pipelines.pipeline_output import QAMDTPipelineOutput
from pipelines.recordings import log_mel_of, read_recordings
from pipelines.samplers import noise_settings, note_latent_settings
from pipelines.sharing import SharingMixin
from pipelines.turns import taking_turns
from qamdt.conditions import Conditions
from qamdt.decoding import decode_latents, latents_to_waveform, mel_to_waveform, samples_per_frame, vae_scale_factor
from qamdt.encoding import encode_waveforms
from qamdt.models.autoencoder_waveform import AutoencoderWaveform
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.models.vocoder_istft import ISTFTVocoder
from qamdt.music import Music
from qamdt.quality import QualityStats


if TYPE_CHECKING:
    from whisq.scorer import WhisQScorer

logger = logging.getLogger(__name__)


class QAMDTPipelineBase(
    LoadingMixin, SharingMixin, CallChecksMixin, ConditioningMixin, DiffusionPipeline, QAMDTLoraLoaderMixin
):
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
        self.model_limits = ModelLimits()  # `from_pretrained` reads them from the model card
        self._origin = None
        self._scorer = None
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
    def scorer(self) -> WhisQScorer:
        """What scores and ranks waveforms: the embedded scorer, unless another was assigned."""
        if self._scorer is not None:
            return self._scorer
        from pipelines.best_of import load_scorer

        return load_scorer(str(self._execution_device))

    @scorer.setter
    def scorer(self, scorer: WhisQScorer) -> None:
        self._scorer = scorer

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

    def list_warnings(self, prompt: str, audio_length_in_s: float | None = None) -> list[str]:
        """Lists what a prompt and a length ask for that the model cannot do, a sentence each."""
        native = self.native_audio_length_in_s
        return self.model_limits.warn(
            prompt,
            native if audio_length_in_s is None else audio_length_in_s,
            native_audio_length_in_s=native,
            tokenizer=self.tokenizer,
        )

    def prepare_noise(self, call: Call, num_latent_frames: int) -> torch.Tensor:
        """Draws noise `(batch, channels, latent_frames, latent_bins)` of variance one, or takes the given one.

        It is float32 whatever the dtype of the network, so that a seed means the same noise for all.
        """
        config = self.transformer.config
        shape = (call.batch_size, config.in_channels, num_latent_frames, config.sample_size[1])
        if call.latents is None:
            return randn_tensor(shape, generator=call.generator, device=self._execution_device, dtype=torch.float32)
        check_tensor("latents", call.latents)
        if call.latents.shape != shape:
            raise ValueError(f"`latents` must have shape {shape} for this call, got {tuple(call.latents.shape)}.")
        return call.latents.to(self._execution_device, torch.float32)

    def prepare_recordings(
        self, audio: str | os.PathLike | np.ndarray | torch.Tensor, sampling_rate: int | None, call: Call
    ) -> torch.Tensor:
        """Reads the `audio` of a call (`pipelines.recordings.read_recordings`): `(batch, samples)` at the model's rate.

        Raises:
            ValueError: It is no sound, or neither one recording nor one for each prompt.
        """
        recordings = read_recordings(
            audio, sampling_rate, self.sampling_rate, max_length_in_s=self.config.max_audio_length_in_s
        )
        if len(recordings) not in (1, call.num_prompts):
            raise ValueError(
                f"`audio` must be one recording or one for each of the {call.num_prompts} prompts, got "
                f"{len(recordings)}; one of several channels has the shape (1, channels, samples)."
            )
        recordings = recordings.repeat_interleave(call.batch_size // len(recordings), dim=0)
        return recordings.to(self._execution_device)

    def encode(self, waveforms: torch.Tensor, num_latent_frames: int) -> torch.Tensor:
        """Turns waveforms `(batch, samples)` into latents `(batch, channels, latent_frames, latent_bins)`.

        It is the way back of `decode`, with silence for what is missing.

        Args:
            waveforms: Waveforms as loud as the autoencoder knows them (`qamdt.audio.normalize_waveform`).
            num_latent_frames: How many latent frames to return.
        """
        missing = num_latent_frames * self._samples_per_latent_frame - waveforms.shape[1]
        waveforms = torch.nn.functional.pad(waveforms, (0, missing))
        log_mel = None if self.vocoder is None else log_mel_of(self.vocoder).to(waveforms.device)
        posterior = encode_waveforms(self.vae, waveforms, log_mel, chunk_frames=256)
        return posterior.mode()[:, :, :num_latent_frames].float() * self.vae.config.scaling_factor

    def generate_latents(
        self,
        call: Call,
        audio_length_in_s: float,
        *,
        known: torch.Tensor | None = None,
        strength: float = 1.0,
        is_kept: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[Music] | None]:
        """Does all of a call between its checked arguments and its latents.

        Args:
            call: The arguments.
            audio_length_in_s: Length of the clips.
            known: Latents of recordings, of the shape of the result; `None` begins with noise.
            strength: Part of the schedule that is run, from 0, which returns `known`, to 1, which begins with noise.
            is_kept: Latent frames `(latent_frames,)` that stay as in `known`; `None` keeps none of them.

        Returns:
            Latents `(batch, channels, latent_frames, latent_bins)`, and what is played in each clip.
        """
        for prompt in call.prompts:
            for warning in self.list_warnings(prompt, audio_length_in_s):
                logger.warning(warning)
        with taking_turns(self.scheduler):
            music = self.prepare_music(call, audio_length_in_s)
            timesteps = self.get_timesteps(call.num_inference_steps, strength)
            num_steps = len(self.scheduler.timesteps)
            guidance = self.prepare_guidance(
                call, audio_length_in_s, music, num_steps=num_steps, first_step=num_steps - len(timesteps)
            )
            noise = self.prepare_noise(call, self.num_latent_frames(audio_length_in_s))
            # A flow begins at noise of variance one, and its scheduler says nothing about that.
            latents = noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

            def known_at(step: int) -> torch.Tensor:
                return add_noise(self.scheduler, known, noise, timesteps[step]) if step < len(timesteps) else known

            def keep(latents: torch.Tensor, step: int, timestep: torch.Tensor) -> torch.Tensor:
                return torch.where(is_kept[:, None], known_at(step + 1), latents)

            if strength < 1:
                latents = known_at(0)

            latents = self.denoise(
                latents,  # (B, C, T, F)
                timesteps,
                guidance,
                eta=call.eta,
                generator=call.generator,
                constrain=None if is_kept is None else keep,
                callback_on_step_end=call.callback_on_step_end,
                callback_on_step_end_tensor_inputs=call.callback_on_step_end_tensor_inputs,
            )
            return latents, music

    def get_timesteps(self, num_inference_steps: int, strength: float) -> torch.Tensor:
        """Sets the scheduler, and returns the last of its timesteps: a part of `strength` of them, at least one if any.

        Args:
            num_inference_steps: Steps of the whole schedule.
            strength: From 0, no step at all, to 1, all of them.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = self.scheduler.timesteps
        if strength == 1:
            return timesteps
        num_steps = max(1, round(strength * num_inference_steps)) if strength > 0 else 0
        first = len(timesteps) if num_steps == 0 else (num_inference_steps - num_steps) * self.scheduler.order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        return timesteps[first:]

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
            replaced = callback_on_step_end(self, step, timestep, tensors)
            replaced = check_replaced(replaced, latents, self._callback_tensor_inputs)
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
        call: Call,
        latents: torch.Tensor,
        audio_length_in_s: float,
        music: list[Music] | None,
        *,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> QAMDTPipelineOutput | tuple:
        """Ends a call: returns latents in the form that is asked for, and lets go of the parts that are offloaded.

        Args:
            call: The arguments.
            latents: Latents `(batch, channels, latent_frames, latent_bins)`.
            audio_length_in_s: Length of the clips.
            music: What is played in them.
            change: What is done to waveforms `(batch, samples)` before they are heard.
        """
        selection = call.selection()
        audios = check_finite(latents, "transformer")
        if call.output_type != "latent" or selection.listens:
            audios = check_finite(self.decode(latents), "decoder")
            audios = audios[:, : round(audio_length_in_s * self.sampling_rate)]  # (B, samples)
            audios = audios if change is None else change(audios)
        self.maybe_free_model_hooks()
        scores = choices = None
        if selection.listens:
            from pipelines.best_of import select  # brings what listens

            places, scores, choices = select(selection, audios, self.sampling_rate, self.scorer)
            audios = (latents if call.output_type == "latent" else audios)[places]
            music = None if music is None else [music[place] for place in places]
        audios = audios.cpu().numpy() if call.output_type == "np" else audios
        if call.return_dict:
            return QAMDTPipelineOutput(
                audios=audios, music=music, scores=scores, choices=choices, sampling_rate=self.sampling_rate
            )
        return (audios,) if scores is None else (audios, scores)

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
