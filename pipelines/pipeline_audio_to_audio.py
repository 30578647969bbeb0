"""Music from a recording with QA-MDT: a variation of it, the same in another style, or a cleaner take.

    from pipelines import QAMDTAudioToAudioPipeline, QAMDTPipeline

    pipe = QAMDTAudioToAudioPipeline.from_pretrained()  # or .from_pipe(a QAMDTPipeline), which shares its weights
    pipe("string quartet", audio="piano.wav", strength=0.6).audios[0]

Shapes: B batch (prompts times waveforms per prompt), C latent channels, T latent frames, F latent bins.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DiffusionPipeline

from pipelines.call import Call
from pipelines.input_checks import check_number
from pipelines.music_conditioning import Chords
from pipelines.pipeline_base import QAMDTPipelineBase
from pipelines.pipeline_output import QAMDTPipelineOutput
from pipelines.prompt_schedule import Schedule
from pipelines.quality_argument import Quality
from pipelines.recordings import level_recordings
from pipelines.samplers import NUM_STEPS_OF_CHANGE
from pipelines.selection import RankBy


class QAMDTAudioToAudioPipeline(QAMDTPipelineBase):
    """Changes recordings as a prompt says: noise is put over their latents and taken out again.

    `QAMDTPipelineBase` says what its parts are.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Schedule | list[str | Schedule] | None = None,
        *,
        audio: str | os.PathLike | np.ndarray | torch.Tensor,
        sampling_rate: int | None = None,
        strength: float = 0.5,
        quality: Quality | list[Quality] = "high",
        negative_prompt: str | list[str] = "",
        negative_quality: Quality | list[Quality] = "medium",
        bpm: float | list[float | None] | None = None,
        key: str | list[str | None] | None = None,
        chords: Chords | list[Chords | None] | None = None,
        time_signature: str | list[str | None] | None = None,
        plan_music: bool | None = None,
        num_inference_steps: int = NUM_STEPS_OF_CHANGE,
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
        """Generates music from recordings.

        What is not explained here means the same as in `QAMDTPipeline.__call__`. The music is as long as the recording.

        Args:
            prompt: What to play.
            audio: A sound file, or samples between about -1 and 1 of shape `(samples,)`, `(prompts, samples)` or
                `(prompts, channels, samples)`. A single recording is taken for all prompts. Any rate and any number of
                channels are brought to the model's, with a warning.
            sampling_rate: Samples per second of `audio` in Hz, where it is no file.
            strength: How much is changed, as the part of the schedule that is run. 0 returns what the autoencoder makes
                of the recording; 1 leaves nothing of it but its length, and equals `QAMDTPipeline` with the same noise.
            bpm: Tempo of the recording. Where in it the beats fall is measured, and so are tempo and key where neither
                arguments nor prompt say them and the measurement is sure.
            plan_music: Whether what is neither said nor measured is drawn; when `None`, only at a strength of 1, where
                nothing of the recording is left that it could disturb.

        Returns:
            `QAMDTPipelineOutput` with `audios`, as loud as the recordings unless `strength` is 1, or a tuple with them.
        """
        check_number("strength", strength, maximum=1)
        call = Call(
            prompt=prompt,
            quality=quality,
            negative_prompt=negative_prompt,
            negative_quality=negative_quality,
            bpm=bpm,
            key=key,
            chords=chords,
            time_signature=time_signature,
            plan_music=strength == 1 if plan_music is None else plan_music,
            loop=False,
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
        recordings = self.prepare_recordings(audio, sampling_rate, call)  # (B, samples)
        audio_length_in_s = recordings.shape[1] / self.sampling_rate
        levelled, gain = level_recordings(recordings)
        if strength == 1:
            music = self.prepare_music(call, audio_length_in_s)
            latents = self.generate_latents(call, audio_length_in_s, music)
            return self.finish(call, latents, audio_length_in_s, music)
        known = self.encode(levelled, self.num_latent_frames(audio_length_in_s))  # (B, C, T, F)
        music = self.prepare_music(call, audio_length_in_s, recordings=recordings)
        latents = self.generate_latents(call, audio_length_in_s, music, known=known, strength=strength)
        return self.finish(call, latents, audio_length_in_s, music, change=lambda waveforms: waveforms * gain)
