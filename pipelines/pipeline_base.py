"""What every pipeline of QA-MDT has: its parts, the checks of a call's arguments, denoising and decoding.

Shapes: B batch (prompts times waveforms per prompt), C latent channels, T latent frames, F latent bins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, SpeechT5HifiGan

from pipelines.call import Call
from pipelines.call_checks import CallChecksMixin, check_finite, check_replaced
from pipelines.conditioning import ConditioningMixin
from pipelines.denoising import Predict, add_noise, denoise
from pipelines.guidance import Guidance
from pipelines.input_checks import check_count, check_number, check_tensor
from pipelines.loading import LoadingMixin
from pipelines.lora import QAMDTLoraLoaderMixin
from pipelines.model_limits import ModelLimits
from pipelines.pipeline_output import QAMDTPipelineOutput
from pipelines.samplers import noise_settings, note_latent_settings
from pipelines.sections import predict_in_sections
from pipelines.sharing import SharingMixin
from pipelines.sound import SoundMixin
from pipelines.turns import taking_turns
from pipelines.windows import place_windows, predict_in_windows
from qamdt.conditions import Conditions
from qamdt.models.autoencoder_waveform import AutoencoderWaveform
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.models.vocoder_istft import ISTFTVocoder
from qamdt.music import Music
from qamdt.quality import QualityStats


if TYPE_CHECKING:
    from whisq.scorer import WhisQScorer

logger = logging.getLogger(__name__)


class QAMDTPipelineBase(
    LoadingMixin,
    SharingMixin,
    CallChecksMixin,
    ConditioningMixin,
    SoundMixin,
    DiffusionPipeline,
    QAMDTLoraLoaderMixin,
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

    def list_warnings(self, prompt: str, audio_length_in_s: float | None = None) -> list[str]:
        """Lists what a prompt and a length ask for that the model cannot do, a sentence each."""
        return self.model_limits.warn(
            prompt,
            self.native_audio_length_in_s if audio_length_in_s is None else audio_length_in_s,
            tokenizer=self.tokenizer,
        )

    def warn_of_limits(self, call: Call, audio_length_in_s: float) -> None:
        """Logs what the prompts of a call ask for that the model cannot do."""
        for prompt in call.prompts:
            for warning in self.list_warnings(prompt, audio_length_in_s):
                logger.warning(warning)

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

    def generate_latents(
        self,
        call: Call,
        audio_length_in_s: float,
        music: list[Music] | None,
        *,
        known: torch.Tensor | None = None,
        strength: float = 1.0,
        is_kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Makes the latents of a call `(batch, channels, latent_frames, latent_bins)`.

        Args:
            call: The arguments, checked.
            audio_length_in_s: Length of the clips.
            music: What is played in them.
            known: Latents of recordings, of the shape of the result; `None` begins with noise.
            strength: Part of the schedule that is run, from 0, which returns `known`, to 1, which begins with noise.
            is_kept: Latent frames `(latent_frames,)` that stay as in `known`; `None` keeps none of them.
        """
        self.warn_of_limits(call, audio_length_in_s)
        with taking_turns(self.scheduler):
            timesteps = self.get_timesteps(call.num_inference_steps, strength)
            guidance = self.prepare_guidance(
                call, audio_length_in_s, music, num_steps=len(self.scheduler.timesteps), num_run=len(timesteps)
            )
            noise = self.prepare_noise(call, self.num_latent_frames(audio_length_in_s))
            return self.denoise(call, noise, timesteps, guidance, known=known, is_kept=is_kept)

    def get_timesteps(self, num_inference_steps: int, strength: float = 1.0) -> torch.Tensor:
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
        call: Call,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: Guidance,
        *,
        known: torch.Tensor | None = None,
        is_kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Takes noise out of latents with a progress bar, and with a callback as diffusers has it.

        Args:
            call: The arguments of the call.
            noise: Noise `(batch, channels, latent_frames, latent_bins)` of variance one.
            timesteps: The scheduler's timesteps, or the last of them, which begin with `known`.
            guidance: What the network is told.
            known: Latents to begin with, or to keep.
            is_kept: As in `generate_latents`.
        """
        self._guidance_scales = guidance.scales
        self._num_timesteps = len(timesteps)
        self._interrupt = False

        def known_at(step: int) -> torch.Tensor:
            return add_noise(self.scheduler, known, noise, timesteps[step]) if step < len(timesteps) else known

        def keep(latents: torch.Tensor, step: int, timestep: torch.Tensor) -> torch.Tensor:
            return torch.where(is_kept[:, None], known_at(step + 1), latents)

        def call_back(latents: torch.Tensor, step: int, timestep: torch.Tensor) -> torch.Tensor:
            tensors = {"latents": latents, "prompt_embeds": guidance.wanted.texts}
            tensors = {name: tensors[name] for name in call.callback_on_step_end_tensor_inputs}
            replaced = call.callback_on_step_end(self, step, timestep, tensors)
            replaced = check_replaced(replaced, latents, self._callback_tensor_inputs)
            if "prompt_embeds" in replaced:
                guidance.replace_texts(replaced["prompt_embeds"])
            return replaced.get("latents", latents)

        if len(timesteps) < len(self.scheduler.timesteps):
            latents = known_at(0)
        else:  # a flow begins at noise of variance one, and its scheduler says nothing about that
            latents = noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        return denoise(
            self._make_predict(noise.shape[2], is_loop=call.loop),
            self.scheduler,
            latents,  # (B, C, T, F)
            self.progress_bar(timesteps),
            guidance,
            eta=call.eta,
            generator=call.generator,
            constrain=None if is_kept is None else keep,
            callback=None if call.callback_on_step_end is None else call_back,
            is_interrupted=lambda: self.interrupt,
        )

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
            audios = check_finite(self.decode(latents, is_loop=call.loop), "decoder")
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

    def _make_predict(self, num_frames: int, *, is_loop: bool) -> Predict:
        """How the network is run on clips of so many latent frames: at once, or in windows of the length it knows."""
        predict = predict_in_sections(self._predict)
        window_frames = self.transformer.config.sample_size[0]
        if num_frames <= window_frames and not is_loop:
            return predict
        return predict_in_windows(predict, place_windows(num_frames, window_frames, is_loop=is_loop))

    def _predict(
        self, model_input: torch.Tensor, timestep: torch.Tensor, branches: Sequence[Conditions], window: int = 0
    ) -> Sequence[torch.Tensor]:
        """Runs the network once for all branches and returns the output of each, in float32."""
        dtype = self.transformer.dtype
        told = Conditions.cat(branches).to(dtype=dtype).for_model(self.transformer.config)
        if told["encoder_attention_mask"].all():
            told["encoder_attention_mask"] = None  # attention may then run on kernels that know no mask
        model_input = torch.cat([model_input] * len(branches)).to(dtype)  # (branches * B, C, T, F)
        # Caches compare a call with the one before of the same name: one of as many branches of the same window.
        with self.transformer.cache_context(f"{len(branches)}_branches_of_window_{window}"):
            model_output = self.transformer(
                hidden_states=model_input,
                timestep=timestep.expand(len(model_input)),
                **told,
                return_dict=False,
            )[0]
        return model_output.float().chunk(len(branches))
