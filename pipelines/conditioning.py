"""What prompts, qualities and music of a call tell the network, as a mixin of pipelines.

Shapes: B batch (prompts times waveforms per prompt), L text tokens, D text width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from diffusers.utils import logging

from pipelines.call import Call
from pipelines.guidance import Guidance
from pipelines.music_conditioning import MusicRequest, requests_per_prompt, resolve_musics, said_music
from pipelines.prompt_schedule import texts_of_sections
from pipelines.quality_conditioning import QualityCondition, add_prefixes, resolve_qualities
from pipelines.sections import CROSSING_IN_S, Sections, Told, shares_of_sections
from qamdt.conditions import Conditions
from qamdt.music import Music, music_curve


logger = logging.get_logger(__name__)


class ConditioningMixin:
    """Encodes prompts, and collects what guidance aims at and what it moves away from."""

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

    def prepare_music(self, call: Call, audio_length_in_s: float) -> list[Music] | None:
        """Decides what is played in each waveform of a call.

        Returns:
            One for each waveform; `None` if the network knows nothing of music.

        Raises:
            ValueError: A value makes no sense, or the network does not know it.
        """
        requests = self._music_requests(call)
        if not self.transformer.config.num_music_features:
            return None
        return resolve_musics(
            call.prompts,
            requests,
            audio_length_in_s,
            call.num_waveforms_per_prompt,
            call.generator,
            plan=call.plan_music,
            is_loop=call.loop,
        )

    def said_bar(self, call: Call) -> float | None:
        """Length of a bar in seconds, if arguments or prompts of a call say a tempo and all say the same."""
        requests = self._music_requests(call)
        if not self.transformer.config.num_music_features:
            return None
        bars_in_s = {said_music(*said).bar_in_s for said in zip(call.prompts, requests, strict=True)}
        return bars_in_s.pop() if len(bars_in_s) == 1 else None

    def _music_requests(self, call: Call) -> list[MusicRequest]:
        """What a call asks of the music of each prompt; refuses to be asked what the network does not know."""
        arguments = {"bpm": call.bpm, "key": call.key, "chords": call.chords, "time_signature": call.time_signature}
        given = [name for name, value in arguments.items() if value is not None]
        if given and not self.transformer.config.num_music_features:
            raise ValueError(
                f"`{given[0]}` was given, but this model does not know it as a condition "
                "(`num_music_features` is 0); say it in the prompt."
            )
        return requests_per_prompt(call.num_prompts, **arguments)

    def prepare_guidance(
        self, call: Call, audio_length_in_s: float, music: list[Music] | None, *, num_steps: int, num_run: int
    ) -> Guidance:
        """Turns the arguments of a call into what the network is told.

        Args:
            call: The arguments.
            audio_length_in_s: Length of the clips.
            music: What `prepare_music` returned.
            num_steps: Denoising steps of the whole schedule.
            num_run: How many of them are run, the last ones.
        """
        num_prompts = call.num_prompts
        if (last := max(schedule[-1][0] for schedule in call.schedules)) >= audio_length_in_s:
            raise ValueError(f"`prompt` must begin within the clip of {audio_length_in_s:g} s, got one at {last:g} s.")
        num_frames = self.num_latent_frames(audio_length_in_s)
        times = np.minimum((np.arange(num_frames) + 0.5) * self._latent_frame_in_s, audio_length_in_s)
        wanted, unwanted = (
            resolve_qualities(value, self.quality_stats, times, audio_length_in_s, num_prompts=num_prompts, name=name)
            for name, value in (("quality", call.quality), ("negative_quality", call.negative_quality))
        )
        played = None if music is None else self._music_curves(music, times)

        def tell(
            texts: list[str],
            embeds: torch.Tensor | None,
            mask: torch.Tensor | None,
            qualities: list[QualityCondition],
            *,
            knows_music: bool,
        ) -> Conditions:
            told = self._conditions(texts, embeds, mask, qualities).repeat(call.num_waveforms_per_prompt)
            if played is None:
                return told
            return replace(told, curves={**told.curves, "music": played if knows_music else torch.zeros_like(played)})

        def tell_prompts(qualities: list[QualityCondition]) -> Told:
            states = (call.prompt_embeds, call.prompt_attention_mask)
            parts = tuple(
                tell(add_prefixes(texts, qualities), *states, qualities, knows_music=True)
                for texts in texts_of_sections(call.schedules)
            )
            if len(parts) == 1:
                return parts[0]
            shares = self._shares_of_sections(call, music, times)
            return Sections(parts, torch.from_numpy(shares).float().to(self._execution_device))

        told = tell_prompts(wanted)
        avoided, scales = [], []
        if call.guidance_scale != 1:
            negative_states = (call.negative_prompt_embeds, call.negative_prompt_attention_mask)
            avoided_quality = unwanted if call.quality_guidance_scale is None else wanted
            avoided.append(tell(call.negative_prompts, *negative_states, avoided_quality, knows_music=False))
            scales.append(call.guidance_scale)
        if call.quality_guidance_scale not in (None, 1):
            avoided.append(tell_prompts(unwanted))
            scales.append(call.quality_guidance_scale)
        return Guidance(
            told,
            avoided,
            scales,
            interval=call.guidance_interval,
            num_steps=num_steps,
            first_step=num_steps - num_run,
        )

    def _shares_of_sections(self, call: Call, music: list[Music] | None, times: np.ndarray) -> np.ndarray:
        """How much each section of the prompts counts at each latent frame, `(batch, sections, latent_frames)`."""
        schedules = [schedule for schedule in call.schedules for _ in range(call.num_waveforms_per_prompt)]
        shares = np.zeros((len(schedules), max(map(len, schedules)), len(times)))
        for number, schedule in enumerate(schedules):
            bar_in_s = None if music is None else music[number].bar_in_s
            seconds = [second for second, _ in schedule]
            shares[number, : len(schedule)] = shares_of_sections(seconds, times, bar_in_s or CROSSING_IN_S)
        return shares

    def _music_curves(self, music: list[Music], times: np.ndarray) -> torch.Tensor:
        """What is played at each latent frame, `(batch, latent_frames, features)`."""
        curves = np.stack([music_curve(clip, times, self._latent_frame_in_s) for clip in music])
        return torch.from_numpy(curves).to(self._execution_device)

    def _conditions(
        self,
        texts: list[str],
        embeds: torch.Tensor | None,
        mask: torch.Tensor | None,
        qualities: list[QualityCondition],
    ) -> Conditions:
        """Collects what the network is told of clips; texts are encoded unless their states are given."""
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
        return conditions.to(self._execution_device)
