"""What the prompts and qualities of a call tell the network, as a mixin of pipelines.

Shapes: B batch (prompts times waveforms per prompt), L text tokens, D text width.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers.utils import logging

from pipelines.guidance import Guidance
from pipelines.quality_argument import Quality
from pipelines.quality_conditioning import QualityCondition, add_prefixes, resolve_qualities
from qamdt.conditions import Conditions


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

    def prepare_guidance(
        self,
        *,
        prompt: str | list[str] | None,
        quality: Quality | list[Quality],
        negative_prompt: str | list[str],
        negative_quality: Quality | list[Quality],
        audio_length_in_s: float,
        num_steps: int,
        guidance_scale: float,
        quality_guidance_scale: float | None,
        guidance_interval: tuple[float, float],
        num_waveforms_per_prompt: int,
        prompt_embeds: torch.Tensor | None,
        prompt_attention_mask: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        negative_prompt_attention_mask: torch.Tensor | None,
    ) -> Guidance:
        """Turns the arguments of a call, all but `num_steps` named as there, into what the network is told."""
        num_prompts = count_prompts(prompt, prompt_embeds)
        num_frames = self.num_latent_frames(audio_length_in_s)
        times = np.minimum((np.arange(num_frames) + 0.5) * self._latent_frame_in_s, audio_length_in_s)
        wanted, unwanted = (
            resolve_qualities(value, self.quality_stats, times, audio_length_in_s, num_prompts=num_prompts, name=name)
            for name, value in (("quality", quality), ("negative_quality", negative_quality))
        )

        def tell(
            texts: list[str], embeds: torch.Tensor | None, mask: torch.Tensor | None, qualities: list[QualityCondition]
        ) -> Conditions:
            return self._conditions(texts, embeds, mask, qualities).repeat(num_waveforms_per_prompt)

        prompts = prompt if isinstance(prompt, list) else [prompt or ""] * num_prompts
        negative_prompts = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt] * num_prompts
        states = (prompt_embeds, prompt_attention_mask)
        negative_states = (negative_prompt_embeds, negative_prompt_attention_mask)
        told = tell(add_prefixes(prompts, wanted), *states, wanted)
        avoided, scales = [], []
        if guidance_scale != 1:
            avoided_quality = unwanted if quality_guidance_scale is None else wanted
            avoided.append(tell(negative_prompts, *negative_states, avoided_quality))
            scales.append(guidance_scale)
        if quality_guidance_scale not in (None, 1):
            avoided.append(tell(add_prefixes(prompts, unwanted), *states, unwanted))
            scales.append(quality_guidance_scale)
        return Guidance(told, avoided, scales, interval=guidance_interval, num_steps=num_steps)

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


def count_prompts(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | None) -> int:
    """How many prompts a call has, as texts or as their states."""
    if prompt_embeds is not None:
        return len(prompt_embeds)
    return 1 if isinstance(prompt, str) else len(prompt)
