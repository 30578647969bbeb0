"""Checks of a call: that its arguments make sense for the model, and that numbers come out."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.call import Call
from pipelines.denoising import takes_in_step
from pipelines.input_checks import (
    check_callback,
    check_choices,
    check_count,
    check_embeds,
    check_generator,
    check_interval,
    check_number,
    check_texts,
    quoted,
)
from pipelines.prompt_schedule import check_prompts
from pipelines.samplers import check_scheduler


class CallChecksMixin:
    """Refuses calls that the model of a pipeline cannot answer."""

    def check_inputs(self, call: Call) -> None:
        """Refuses arguments of a call that make no sense, and a scheduler that does not fit the network."""
        check_scheduler(self.scheduler, self._noise_settings)
        if (call.prompt is None) == (call.prompt_embeds is None):
            raise ValueError(
                f"Pass either `prompt` or `prompt_embeds`, got {'neither' if call.prompt is None else 'both'}."
            )
        text_dim = self.transformer.config.cross_attention_dim
        if call.prompt_embeds is None:
            check_prompts(call.prompt)
        else:
            check_embeds("prompt", call.prompt_embeds, call.prompt_attention_mask, text_dim)
        check_texts("negative_prompt", call.negative_prompt, call.num_prompts)
        if call.negative_prompt_embeds is not None:
            check_embeds(
                "negative_prompt",
                call.negative_prompt_embeds,
                call.negative_prompt_attention_mask,
                text_dim,
                call.num_prompts,
            )

        check_count("num_inference_steps", call.num_inference_steps, self.scheduler.config.num_train_timesteps)
        check_count("num_waveforms_per_prompt", call.num_waveforms_per_prompt)
        check_number("guidance_scale", call.guidance_scale)
        if call.quality_guidance_scale is not None:
            check_number("quality_guidance_scale", call.quality_guidance_scale)
        check_interval("guidance_interval", call.guidance_interval)
        check_number("eta", call.eta, maximum=1)
        if call.eta and not takes_in_step(self.scheduler, "eta"):
            raise ValueError(
                f"`eta` must be 0 for {type(self.scheduler).__name__}, got {call.eta!r}; DDIMScheduler takes it."
            )
        check_generator(call.generator, call.batch_size)
        call.selection()  # refuses what does not go together
        check_choices("output_type", [call.output_type], ["np", "pt", "latent"])
        check_callback("callback_on_step_end", call.callback_on_step_end)
        check_choices(
            "callback_on_step_end_tensor_inputs", call.callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        if call.num_sections > 1 and "prompt_embeds" in call.callback_on_step_end_tensor_inputs:
            raise ValueError(
                "`callback_on_step_end_tensor_inputs` must not hold 'prompt_embeds' where prompts change over the clip."
            )

    def check_length(self, audio_length_in_s: float) -> None:
        """Refuses a length that no clip can have."""
        check_number("audio_length_in_s", audio_length_in_s, maximum=self.config.max_audio_length_in_s, is_open=True)
        if round(audio_length_in_s * self.sampling_rate) < 1:
            raise ValueError(
                f"`audio_length_in_s` must be at least one sample, {1 / self.sampling_rate:g} s, got {audio_length_in_s!r}."
            )


def check_replaced(replaced: Any, latents: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """Refuses what a callback must not return, which is None or new tensors for some of `names`."""
    if replaced is None:
        return {}
    if not isinstance(replaced, dict) or not replaced.keys() <= set(names):
        raise ValueError(
            "`callback_on_step_end` must return None or a dictionary with some of "
            f"{', '.join(map(repr, names))}, got {quoted(replaced)}."
        )
    if (shape := getattr(replaced.get("latents", latents), "shape", None)) != latents.shape:
        raise ValueError(
            f"`callback_on_step_end` must return latents of shape {tuple(latents.shape)}, got {shape and tuple(shape)}."
        )
    return replaced


def check_finite(values: torch.Tensor, part: str) -> torch.Tensor:
    """Returns what a part made, and refuses NaN and infinity: a file of them is silence or a bang."""
    if not values.isfinite().all():
        raise RuntimeError(
            f"the {part} gave values that are not finite. Its weights are damaged, or its precision is too small for "
            "them: load the model again, with `dtype=torch.float32`."
        )
    return values
