"""What prompts, qualities and music of a call tell the network, as a mixin of pipelines.

Shapes: B batch (prompts times waveforms per prompt), L text tokens, D text width.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch

from pipelines.call import Call
from pipelines.guidance import Guidance
from pipelines.input_checks import quoted
from pipelines.music_conditioning import MusicRequest, requests_per_prompt, resolve_musics, said_music
from pipelines.music_hearing import hear_music
from pipelines.prompt_schedule import Schedule, split_schedule, texts_of_sections
from pipelines.quality_conditioning import QualityCondition, add_prefixes, resolve_qualities
from pipelines.sections import CROSSING_IN_S, Sections, Told, is_constant, shares_of_sections
from qamdt.conditions import Conditions
from qamdt.music import Music, music_curve


logger = logging.getLogger(__name__)


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
                logger.warning(f"Prompts are cut off after {self.config.max_text_tokens} tokens; got {quoted(text)}.")
        states = self.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return states.last_hidden_state, tokens.attention_mask.bool()

    def prepare_music(
        self,
        call: Call,
        audio_length_in_s: float,
        *,
        recordings: torch.Tensor | None = None,
        recording_start_in_s: float = 0.0,
    ) -> list[Music] | None:
        """Decides what is played in each waveform of a call.

        Args:
            call: The arguments.
            audio_length_in_s: Length of the clips.
            recordings: Recordings `(batch, samples)` that go with it, whose beats it keeps.
            recording_start_in_s: Where in the clips they begin.

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
            heard=None if recordings is None else self._hear(call, requests, recordings, recording_start_in_s),
        )

    def _hear(
        self, call: Call, requests: list[MusicRequest], recordings: torch.Tensor, start_in_s: float
    ) -> list[Music]:
        """What is to be heard in the recording that each waveform begins with; a tempo that is said counts before."""
        heard = []
        for recording, prompt, request in zip(
            recordings[:: call.num_waveforms_per_prompt], call.prompts, requests, strict=True
        ):
            said = said_music(prompt, request)
            music = hear_music(recording, self.sampling_rate, bpm=said.tempo_bpm, start_in_s=start_in_s)
            heard += [music] * call.num_waveforms_per_prompt
        return heard

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
        num_frames = self.num_latent_frames(audio_length_in_s)
        times = np.minimum((np.arange(num_frames) + 0.5) * self._latent_frame_in_s, audio_length_in_s)
        schedules = self._split_into_sections(call, times, audio_length_in_s)
        shares = self._shares_of_sections(call, schedules, music, times)  # (B, S, T)
        wanted, unwanted = (
            self._qualities_of_sections(call, name, shares, times, audio_length_in_s)
            for name in ("quality", "negative_quality")
        )
        played = None if music is None else self._music_curves(music, times)

        def tell(
            texts: list[list[str]],
            states: tuple[torch.Tensor | None, torch.Tensor | None],
            qualities: list[list[QualityCondition]],
            *,
            knows_music: bool,
        ) -> Told:
            said = [[(one.prefix, one.level) for one in part] for part in qualities]
            parts = []
            for section in range(1 if is_constant(texts) and is_constant(said) else len(texts)):
                told = self._conditions(texts[section], *states, qualities[section])
                told = told.repeat(call.num_waveforms_per_prompt)
                if played is not None:
                    music_curves = played if knows_music else torch.zeros_like(played)
                    told = replace(told, curves={**told.curves, "music": music_curves})
                parts.append(told)
            return parts[0] if len(parts) == 1 else Sections(tuple(parts), shares)

        texts = texts_of_sections(schedules)
        states = (call.prompt_embeds, call.prompt_attention_mask)
        told = tell(list(map(add_prefixes, texts, wanted)), states, wanted, knows_music=True)
        avoided, scales = [], []
        if call.guidance_scale != 1:
            negative_states = (call.negative_prompt_embeds, call.negative_prompt_attention_mask)
            avoided_quality = unwanted if call.quality_guidance_scale is None else wanted
            negative_texts = [call.negative_prompts] * len(texts)
            avoided.append(tell(negative_texts, negative_states, avoided_quality, knows_music=False))
            scales.append(call.guidance_scale)
        if call.quality_guidance_scale not in (None, 1):
            avoided.append(tell(list(map(add_prefixes, texts, unwanted)), states, unwanted, knows_music=True))
            scales.append(call.quality_guidance_scale)
        first_step = num_steps - num_run
        return Guidance(
            told, avoided, scales, interval=call.guidance_interval, num_steps=num_steps, first_step=first_step
        )

    def _split_into_sections(self, call: Call, times: np.ndarray, audio_length_in_s: float) -> list[Schedule]:
        """The schedule of each prompt; of a long clip whose quality changes, cut so that each part has its own."""
        if (last := max(schedule[-1][0] for schedule in call.schedules)) >= audio_length_in_s:
            raise ValueError(f"`prompt` must begin within the clip of {audio_length_in_s:g} s, got one at {last:g} s.")
        longest_in_s = self.native_audio_length_in_s
        qualities = resolve_qualities(
            call.quality, self.quality_stats, times, audio_length_in_s, num_prompts=call.num_prompts
        )
        if audio_length_in_s <= longest_in_s or all(np.ptp(quality.frame_levels) == 0 for quality in qualities):
            return call.schedules
        cuts = np.arange(longest_in_s, audio_length_in_s, longest_in_s).tolist()
        return [split_schedule(schedule, cuts) for schedule in call.schedules]

    def _shares_of_sections(
        self, call: Call, schedules: list[Schedule], music: list[Music] | None, times: np.ndarray
    ) -> torch.Tensor:
        """How much each section of the prompts counts at each latent frame, `(batch, sections, latent_frames)`."""
        shares = np.zeros((call.batch_size, max(map(len, schedules)), len(times)), dtype=np.float32)
        for number in range(call.batch_size):
            schedule = schedules[number // call.num_waveforms_per_prompt]
            bar_in_s = None if music is None else music[number].bar_in_s
            seconds = [second for second, _ in schedule]
            shares[number, : len(schedule)] = shares_of_sections(seconds, times, bar_in_s or CROSSING_IN_S)
        return torch.from_numpy(shares).to(self._execution_device)

    def _qualities_of_sections(
        self, call: Call, name: str, shares: torch.Tensor, times: np.ndarray, audio_length_in_s: float
    ) -> list[list[QualityCondition]]:
        """The quality that `name` says in each section, `[section][prompt]`."""
        weights = shares[:: call.num_waveforms_per_prompt].cpu().numpy()  # (prompts, S, T)
        weights = np.where(weights.any(axis=2, keepdims=True), weights, 1.0)  # of a prompt with fewer sections
        return [
            resolve_qualities(
                getattr(call, name),
                self.quality_stats,
                times,
                audio_length_in_s,
                num_prompts=call.num_prompts,
                weights=weights[:, section],
                name=name,
            )
            for section in range(weights.shape[1])
        ]

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
