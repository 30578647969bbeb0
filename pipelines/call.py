"""The arguments that a call of every pipeline has, in one place: what is played, how well, and how it is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from pipelines.music_conditioning import Chords
from pipelines.prompt_schedule import Schedule, is_schedule
from pipelines.quality_argument import Quality
from pipelines.selection import RankBy, Selection


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """Arguments with the names and the meaning that they have in `QAMDTPipeline.__call__`; none has a default here.

    What is particular to one pipeline, such as the length of the clips or a recording to begin with, is not among them.
    """

    prompt: str | Schedule | list[str | Schedule] | None
    quality: Quality | list[Quality]
    negative_prompt: str | list[str]
    negative_quality: Quality | list[Quality]
    bpm: float | list[float | None] | None
    key: str | list[str | None] | None
    chords: Chords | list[Chords | None] | None
    time_signature: str | list[str | None] | None
    plan_music: bool
    loop: bool
    num_inference_steps: int
    guidance_scale: float
    quality_guidance_scale: float | None
    guidance_interval: tuple[float, float]
    num_waveforms_per_prompt: int
    keep: int | None
    rank_by: RankBy | None
    return_scores: bool
    eta: float
    generator: torch.Generator | list[torch.Generator] | None
    latents: torch.Tensor | None
    prompt_embeds: torch.Tensor | None
    prompt_attention_mask: torch.Tensor | None
    negative_prompt_embeds: torch.Tensor | None
    negative_prompt_attention_mask: torch.Tensor | None
    callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None
    callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str]
    output_type: str
    return_dict: bool

    @property
    def num_prompts(self) -> int:
        """How many prompts there are, as texts or as their states."""
        if self.prompt_embeds is not None:
            return len(self.prompt_embeds)
        return len(self.prompt) if isinstance(self.prompt, list) and not is_schedule(self.prompt) else 1

    @property
    def batch_size(self) -> int:
        """How many waveforms are made."""
        return self.num_prompts * self.num_waveforms_per_prompt

    @property
    def schedules(self) -> list[Schedule]:
        """What is played from when, for each prompt; an empty text where text states are given instead."""
        prompts = (
            self.prompt if isinstance(self.prompt, list) and not is_schedule(self.prompt) else [self.prompt or ""]
        )
        prompts = prompts * (self.num_prompts // len(prompts))
        return [prompt if is_schedule(prompt) else [(0.0, prompt)] for prompt in prompts]

    @property
    def num_sections(self) -> int:
        """How many sections the prompt with most of them has."""
        return max(map(len, self.schedules))

    @property
    def prompts(self) -> list[str]:
        """Each prompt as one text, with what is played later behind what is played first."""
        return [", ".join(text for _, text in schedule) for schedule in self.schedules]

    @property
    def negative_prompts(self) -> list[str]:
        """The negative prompt of each prompt."""
        if isinstance(self.negative_prompt, list):
            return self.negative_prompt
        return [self.negative_prompt] * self.num_prompts

    def selection(self) -> Selection:
        """What is kept of the waveforms, and whether they are scored.

        Raises:
            ValueError: That does not go together.
        """
        return Selection(
            prompts=[prompt or None for prompt in self.prompts],
            num_waveforms_per_prompt=self.num_waveforms_per_prompt,
            keep=self.keep,
            rank_by=self.rank_by,
            return_scores=self.return_scores,
        )
