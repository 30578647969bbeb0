"""Music that takes the place of spans of a recording with QA-MDT, or goes on where it ends, or leads to its beginning.

    from pipelines import QAMDTInpaintPipeline

    pipe = QAMDTInpaintPipeline.from_pretrained()  # or .from_pipe(a QAMDTPipeline), which shares its weights
    pipe("solo piano", audio="piano.wav", spans=[(2.0, 4.5)]).audios[0]  # plays two and a half seconds anew
    pipe("solo piano", audio="piano.wav", audio_length_in_s=30)  # plays on
    pipe("solo piano", audio="piano.wav", audio_length_in_s=30, audio_start_in_s=20)  # what came before

Shapes: B batch (prompts times waveforms per prompt), C latent channels, T latent frames, F latent bins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

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
from pipelines.samplers import NUM_STEPS
from pipelines.selection import RankBy
from pipelines.spans import LOOP_SEAM_IN_S, cross_fade, find_made, lay_out_recordings


class QAMDTInpaintPipeline(QAMDTPipelineBase):
    """Plays spans of recordings anew, so that they fit what is around them.

    `QAMDTPipelineBase` says what its parts are.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Schedule | list[str | Schedule] | None = None,
        *,
        audio: str | os.PathLike | np.ndarray | torch.Tensor,
        sampling_rate: int | None = None,
        spans: Sequence[tuple[float, float]] = (),
        audio_length_in_s: float | None = None,
        audio_start_in_s: float = 0.0,
        strength: float = 1.0,
        keep_original: bool = True,
        quality: Quality | list[Quality] = "high",
        negative_prompt: str | list[str] = "",
        negative_quality: Quality | list[Quality] = "medium",
        bpm: float | list[float | None] | None = None,
        key: str | list[str | None] | None = None,
        chords: Chords | list[Chords | None] | None = None,
        time_signature: str | list[str | None] | None = None,
        plan_music: bool = False,
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
        """Generates music for the spans of a clip, and leaves the rest as it is.

        What is not explained here means the same as in `QAMDTPipeline.__call__`.

        Args:
            prompt: What to play.
            audio: A sound file, or samples between about -1 and 1 of shape `(samples,)`, `(prompts, samples)` or
                `(prompts, channels, samples)`. A single recording is taken for all prompts. Any rate and any number of
                channels are brought to the model's, with a warning.
            sampling_rate: Samples per second of `audio` in Hz, where it is no file.
            spans: What to play anew, as `(start, end)` in seconds of the clip. What the recording does not reach is
                played in any case.
            audio_length_in_s: Length of the clip; it ends with the recording when `None`.
            audio_start_in_s: Where in the clip the recording begins.
            loop: Whether the clip is to go on with its beginning, so that it can be played over and over. It then lasts
                whole latent frames, and without `spans` its last second (of a short one the last quarter) leads back.
            strength: How much of what is in the spans is changed, as the part of the schedule that is run; 1 leaves
                nothing of it.
            keep_original: Whether the recording itself sounds outside the spans, and crosses over to what is made
                within 40 ms before and behind each of them. Otherwise it sounds as the autoencoder makes it.
            bpm: Tempo of the recording. Where in it the beats fall is measured, and so are tempo and key where neither
                arguments nor prompt say them and the measurement is sure.
            plan_music: Whether what is neither said nor measured is drawn.

        Returns:
            `QAMDTPipelineOutput` with `audios`, as loud as the recordings, or a tuple with them.
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
        recordings = self.prepare_recordings(audio, sampling_rate, call)  # (B, samples)
        check_number("audio_start_in_s", audio_start_in_s, maximum=self.config.max_audio_length_in_s)
        start = round(audio_start_in_s * self.sampling_rate)
        recording = slice(start, start + recordings.shape[1])
        if audio_length_in_s is None:
            audio_length_in_s = recording.stop / self.sampling_rate
        self.check_length(audio_length_in_s)
        if loop:  # whole latent frames; what the recording lacks of them is made
            audio_length_in_s = self.num_latent_frames(audio_length_in_s) * self._latent_frame_in_s
            if isinstance(spans, Sequence) and len(spans) == 0:
                seam_in_s = min(LOOP_SEAM_IN_S, audio_length_in_s / 4)
                spans = [(audio_length_in_s - seam_in_s, audio_length_in_s)]
        num_samples = round(audio_length_in_s * self.sampling_rate)
        is_made = find_made(spans, num_samples, recording, self.sampling_rate).to(recordings.device)  # (samples,)

        originals = lay_out_recordings(recordings, start, num_samples, self.sampling_rate)
        levelled, gain = level_recordings(originals, is_heard=~is_made)
        num_frames = self.num_latent_frames(audio_length_in_s)
        music = self.prepare_music(
            call, audio_length_in_s, recordings=recordings, recording_start_in_s=audio_start_in_s
        )
        latents = self.generate_latents(
            call,
            audio_length_in_s,
            music,
            known=self.encode(levelled, num_frames),  # (B, C, T, F)
            strength=strength,
            is_kept=self.frames_without(is_made, num_frames),
        )

        def sound_as_before(waveforms: torch.Tensor) -> torch.Tensor:
            waveforms = waveforms * gain
            if not keep_original:
                return waveforms
            return cross_fade(originals, waveforms, is_made, self.sampling_rate, is_loop=loop)

        return self.finish(call, latents, audio_length_in_s, music, change=sound_as_before)
