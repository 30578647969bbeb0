"""Music from text with QA-MDT, at the quality asked for.

    from qamdt import QAMDTPipeline

    QAMDTPipeline("a calm piano ballad", quality="high").audios[0]  # the default model, loaded once

    pipe = QAMDTPipeline.from_pretrained("a folder or Hub id")
    pipe("a calm piano ballad", quality=[2.0, 4.5], audio_length_in_s=20)  # the quality rises
    pipe("solo piano", bpm=120, key="A minor", chords="Am F C G", time_signature="3/4")

Shapes: B batch (prompts times waveforms per prompt), C latent channels, T latent frames, F latent bins,
L text tokens, D text width.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DiffusionPipeline

from pipelines.auto_pipeline import register_for_text_to_audio
from pipelines.call import Call
from pipelines.loading import GenerateWhenCalledWithPrompt
from pipelines.music_conditioning import Chords
from pipelines.pipeline_base import QAMDTPipelineBase
from pipelines.pipeline_output import QAMDTPipelineOutput
from pipelines.prompt_schedule import Schedule
from pipelines.quality_argument import Quality
from pipelines.restoration import Restoration, restore_recording
from pipelines.samplers import NUM_STEPS, NUM_STEPS_OF_CHANGE
from pipelines.selection import RankBy
from pipelines.streaming import StreamingMixin


class QAMDTPipeline(QAMDTPipelineBase, StreamingMixin, metaclass=GenerateWhenCalledWithPrompt):
    """Generates music from text prompts with the quality-aware masked diffusion transformer.

    Called on the class with a prompt, it loads the default model once and generates with it. `QAMDTPipelineBase` says
    what its parts are.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Schedule | list[str | Schedule] | None = None,
        *,
        quality: Quality | list[Quality] = "high",
        negative_prompt: str | list[str] = "",
        negative_quality: Quality | list[Quality] = "medium",
        bpm: float | list[float | None] | None = None,
        key: str | list[str | None] | None = None,
        chords: Chords | list[Chords | None] | None = None,
        time_signature: str | list[str | None] | None = None,
        plan_music: bool = True,
        audio_length_in_s: float | None = None,
        loop: bool = False,
        num_inference_steps: int = NUM_STEPS,
        guidance_scale: float = 3.5,
        quality_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_waveforms_per_prompt: int = 1,
        keep: int | None = None,
        rank_by: RankBy | None = None,
        return_scores: bool = False,
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
    ) -> QAMDTPipelineOutput | tuple:
        """Generates music.

        Args:
            prompt: What to play. The quality is put in front of it as text; an empty prompt stays empty. `(second, text)`
                tuples, the first at 0, take turns: each crosses into the next over a bar around the second.
            quality: `"high"`, `"medium"`, `"low"`; a score (MOS) from 1 to 5; a curve over the clip, as a list of
                scores that are spread over it or of `(second, score)` tuples; or `None` for unknown. A list of
                anything else is one of these for each prompt, such as `["high", 3.2]` or `[[2.0, 4.5], [3.0]]`.
            negative_prompt: What guidance moves away from, taken as it stands.
            negative_quality: The quality that guidance moves away from. `"medium"` is the published choice.
            bpm: Beats a minute, from 40 to 220; what the prompt says ("at 120 bpm", "allegro") when `None`. This and the
                next three may be lists with a value for each prompt.
            key: Tonic and mode, such as `"A minor"`; what the prompt says when `None`.
            chords: Symbols, a bar each and over again, such as `"Am F C G"` or, with two in a bar, `"Am | F G"`; or
                `(second, symbol)` tuples.
            time_signature: `"4/4"` or `"3/4"`; what the prompt says ("a waltz") when `None`.
            plan_music: Whether what neither the arguments nor the prompt say is drawn; it is left to the network
                otherwise, which then keeps no clear beat. For networks that know music (`num_music_features`).
            audio_length_in_s: Length of the waveforms in seconds; what the network was built for when `None`. Longer ones
                are made of overlapping windows that are denoised jointly.
            loop: Whether the clip goes on with its beginning, so that it can be played over and over. If a tempo is said,
                the length is rounded to whole bars, and in any case to whole latent frames.
            num_inference_steps: Denoising steps; more are slower, and a first-order scheduler needs them.
            guidance_scale: How far to move away from the negative prompt and quality; 1 turns guidance off, and the
                network then runs once per step and not on a double batch.
            quality_guidance_scale: Separates guidance by quality from guidance by text. `guidance_scale` then acts
                against the negative prompt at the quality asked for, and this one against the prompt at the
                negative quality. `None` guides by both at once, as published.
            guidance_interval: First and last part of the schedule that is guided, as fractions from 0 (pure noise)
                to 1; the other steps cost half.
            num_waveforms_per_prompt: Waveforms for each prompt, in a row in the result.
            keep: How many of these are kept, the best first; all when `None`.
            rank_by: What is best: `"overall_quality"` (how good it sounds to WhisQ), `"text_alignment"` or `"clap"` (how
                well it follows the prompt, to WhisQ and to CLAP); several of these, of which the least sum of ranks
                wins; or a function `rank_by(waveform, sampling_rate, prompt)`, which returns a greater number for what
                is better.
            return_scores: Whether WhisQ scores what is kept; its curve over the clip is in the scores.
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
            `QAMDTPipelineOutput` with `audios`, their `sampling_rate`, the `music` that is played, and the `scores` and
            `choices` that are asked for; or a tuple with the audios and, with `return_scores`, the scores.
        """
        call = Call(
            prompt=prompt,
            quality=quality,
            negative_prompt=negative_prompt,
            negative_quality=negative_quality,
            bpm=bpm,
            key=key,
            chords=chords,
            time_signature=time_signature,
            plan_music=plan_music,
            loop=loop,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            quality_guidance_scale=quality_guidance_scale,
            guidance_interval=guidance_interval,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
            keep=keep,
            rank_by=rank_by,
            return_scores=return_scores,
            eta=eta,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_embeds=negative_prompt_embeds,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            output_type=output_type,
            return_dict=return_dict,
        )
        self.check_inputs(call)
        if audio_length_in_s is None:
            audio_length_in_s = self.native_audio_length_in_s
        self.check_length(audio_length_in_s)
        if loop:
            audio_length_in_s = self.loop_length(audio_length_in_s, self.said_bar(call))
        music = self.prepare_music(call, audio_length_in_s)
        latents = self.generate_latents(call, audio_length_in_s, music)
        return self.finish(call, latents, audio_length_in_s, music)

    @torch.no_grad()
    def restore(
        self,
        audio: str | os.PathLike | np.ndarray | torch.Tensor,
        *,
        sampling_rate: int | None = None,
        prompt: str = "",
        strength: float | None = None,
        good_score: float | None = None,
        num_inference_steps: int = NUM_STEPS_OF_CHANGE,
        guidance_scale: float = 1.0,
        seed: int = 0,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
    ) -> Restoration:
        """Raises the quality of a recording where its own WhisQ curve is low (`pipelines.restoration` says how).

        Args:
            audio: One sound file, or samples between about -1 and 1 of shape `(samples,)`, or `(1, channels, samples)`. Any
                rate and any number of channels are brought to the model's, with a warning.
            sampling_rate: Samples per second of `audio` in Hz, where it is no file.
            prompt: What is played.
            strength: Part of the denoising schedule that is run; in proportion to how low it scores when `None`.
            good_score: Moments that score as much are left alone; where the model's "high" begins when `None`.
            num_inference_steps: Denoising steps of the whole schedule.
            guidance_scale: As in a call.
            seed: The same seed gives the same result.
            callback_on_step_end: As in a call; not called where nothing is changed.

        Returns:
            The recording as `audio`, with its scores before and after, and what was changed.

        Raises:
            ValueError: `audio` is silent or not finite, or a value makes no sense.
        """
        return restore_recording(
            self,
            audio,
            sampling_rate=sampling_rate,
            prompt=prompt,
            strength=strength,
            good_score=good_score,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            callback_on_step_end=callback_on_step_end,
        )


register_for_text_to_audio("qamdt", QAMDTPipeline)
