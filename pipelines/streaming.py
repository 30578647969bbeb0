"""Music that is heard while it is made: window after window, each going on where the one before ended.

Shapes: B batch, C latent channels, T latent frames, F latent bins.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pipelines.call import Call
from pipelines.call_checks import check_finite
from pipelines.guidance import Guidance
from pipelines.music_conditioning import Chords
from pipelines.prompt_schedule import Schedule
from pipelines.quality_argument import Quality
from pipelines.samplers import NUM_STEPS
from pipelines.turns import taking_turns
from pipelines.windows import OVERLAP


DECODING_CONTEXT = 32  # latent frames before and behind what is decoded; it is waited for


class StreamingMixin:
    """Makes clips in the order of time, where a call makes all of a clip at once."""

    def stream(
        self,
        prompt: str | Schedule | list[str | Schedule],
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
        num_inference_steps: int = NUM_STEPS,
        guidance_scale: float = 3.5,
        quality_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_waveforms_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields music piece by piece, the first of them as soon as one window is made.

        Each window is made with the end of the one before in view, and what is heard does not change any more. In a call
        all windows shape each other, so the same seed gives other music there. The arguments mean the same as in
        `QAMDTPipeline.__call__`.

        Yields:
            Waveforms of shape `(batch, samples)`, as many samples in all as `audio_length_in_s` says.
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
            loop=False,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            quality_guidance_scale=quality_guidance_scale,
            guidance_interval=guidance_interval,
            num_waveforms_per_prompt=num_waveforms_per_prompt,
            keep=None,
            rank_by=None,
            return_scores=False,
            eta=eta,
            generator=generator,
            latents=None,
            prompt_embeds=None,
            prompt_attention_mask=None,
            negative_prompt_embeds=None,
            negative_prompt_attention_mask=None,
            callback_on_step_end=None,
            callback_on_step_end_tensor_inputs=(),
            output_type="np",
            return_dict=True,
        )
        self.check_inputs(call)
        if audio_length_in_s is None:
            audio_length_in_s = self.native_audio_length_in_s
        self.check_length(audio_length_in_s)
        return self._stream(call, audio_length_in_s)

    @torch.no_grad()
    def _stream(self, call: Call, audio_length_in_s: float) -> Iterator[np.ndarray]:
        self.warn_of_limits(call, audio_length_in_s)
        num_samples, num_yielded = round(audio_length_in_s * self.sampling_rate), 0
        music = self.prepare_music(call, audio_length_in_s)
        with taking_turns(self.scheduler):
            num_steps = len(self.get_timesteps(call.num_inference_steps))
            guidance = self.prepare_guidance(call, audio_length_in_s, music, num_steps=num_steps, num_run=num_steps)
        latents = self._make_in_order(call, guidance, self.num_latent_frames(audio_length_in_s))
        for waveforms in self._decode_in_order(latents):
            yield waveforms[:, : num_samples - num_yielded].cpu().numpy()
            num_yielded += waveforms.shape[1]
        self.maybe_free_model_hooks()

    def _make_in_order(self, call: Call, guidance: Guidance, num_frames: int) -> Iterator[torch.Tensor]:
        """Yields the latents of one window after the other, without what a window shares with the one before."""
        size = min(self.transformer.config.sample_size[0], num_frames)
        overlap = min(round(OVERLAP * size), size - 1)
        window, is_kept = None, torch.arange(size, device=self._execution_device) < overlap
        for start in range(0, max(1, num_frames - overlap), size - overlap):
            frames = torch.arange(start, start + size, device=self._execution_device).clamp(max=num_frames - 1)
            noise = self.prepare_noise(call, size)
            known = None if window is None else torch.cat([window[:, :, -overlap:], noise[:, :, overlap:]], dim=2)
            with taking_turns(self.scheduler):
                window = self.denoise(
                    call,
                    noise,
                    self.get_timesteps(call.num_inference_steps),
                    guidance.at_frames(frames),
                    known=known,
                    is_kept=None if known is None else is_kept,
                )
            check_finite(window, "transformer")
            yield window[:, :, 0 if start == 0 else overlap : num_frames - start]

    def _decode_in_order(self, pieces: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yields the waveforms of latents that come piece by piece, each once enough of what follows is known."""
        latents, num_done = None, 0  # what is kept of the latents, and how much of that was decoded
        for piece in pieces:
            latents = piece if latents is None else torch.cat([latents, piece], dim=2)
            num_ready = max(num_done, latents.shape[2] - DECODING_CONTEXT)
            if num_ready > num_done:
                yield self._decode_part(latents, num_done, num_ready)
            first = max(0, num_ready - DECODING_CONTEXT)
            latents, num_done = latents[:, :, first:], num_ready - first
        yield self._decode_part(latents, num_done, latents.shape[2])

    def _decode_part(self, latents: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        return self.decode(latents)[:, start * self._samples_per_latent_frame : stop * self._samples_per_latent_frame]
