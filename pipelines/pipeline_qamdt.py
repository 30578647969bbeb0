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

from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline

from pipelines.auto_pipeline import register_for_text_to_audio
from pipelines.call import Call
from pipelines.loading import GenerateWhenCalledWithPrompt
from pipelines.music_conditioning import Chords
from pipelines.pipeline_base import QAMDTPipelineBase
from pipelines.pipeline_output import QAMDTPipelineOutput
from pipelines.quality_argument import Quality
from pipelines.selection import RankBy


class QAMDTPipeline(QAMDTPipelineBase, metaclass=GenerateWhenCalledWithPrompt):
    """Generates music from text prompts with the quality-aware masked diffusion transformer.

    Called on the class with a prompt, it loads the default model once and generates with it. `QAMDTPipelineBase` says
    what its parts are.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
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
        num_inference_steps: int = 25,
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
            prompt: What to play. The quality is put in front of it as text; an empty prompt stays empty.
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
        if audio_length_in_s is None:
            audio_length_in_s = self.native_audio_length_in_s
        self.check_length(audio_length_in_s)
        self.check_inputs(call)
        latents, music = self.generate_latents(call, audio_length_in_s)
        return self.finish(call, latents, audio_length_in_s, music)


register_for_text_to_audio("qamdt", QAMDTPipeline)
