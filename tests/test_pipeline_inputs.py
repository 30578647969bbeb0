"""Every wrong argument of a call is refused before anything is computed, with a message that says what is right."""

import pytest
import torch


EMBEDS = torch.zeros(2, 3, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "`prompt` must be a text or a list of at least one text, got \\[\\]"),
        ({"prompt": 3}, "`prompt` must be a text or a list of at least one text, got 3"),
        ({"prompt": ["piano", None]}, "`prompt` must be a text or a list of at least one text"),
        ({}, "Pass either `prompt` or `prompt_embeds`, got neither"),
        ({"prompt": "piano", "prompt_embeds": EMBEDS}, "Pass either `prompt` or `prompt_embeds`, got both"),
        ({"prompt_embeds": torch.zeros(3, 16)}, "`prompt_embeds` must have shape \\(prompts, text_tokens, 16\\)"),
        ({"prompt_embeds": torch.zeros(1, 3, 5)}, "`prompt_embeds` must have shape .* got \\(1, 3, 5\\)"),
        ({"prompt_embeds": torch.zeros(0, 3, 16)}, "`prompt_embeds` must have shape"),
        (
            {"prompt_embeds": EMBEDS, "prompt_attention_mask": torch.ones(2, 4)},
            "`prompt_attention_mask` must have the shape \\(2, 3\\) of `prompt_embeds`, got \\(2, 4\\)",
        ),
        (
            {"prompt": "piano", "negative_prompt_embeds": EMBEDS},
            "`negative_prompt_embeds` must have shape \\(1, text_tokens, 16\\), got \\(2, 3, 16\\)",
        ),
        (
            {"prompt": ["piano", "drums"], "negative_prompt": ["guitar"]},
            "`negative_prompt` must be one text or a list with one for each of the 2 prompts, got 1",
        ),
        ({"prompt": "piano", "quality": "excellent"}, "`quality` must be .* got 'excellent'"),
        ({"prompt": "piano", "quality": 9}, "`quality` must hold scores from 1 to 5, got 9"),
        ({"prompt": "piano", "audio_length_in_s": -1}, "`audio_length_in_s` must be a number greater than 0"),
        ({"prompt": "piano", "audio_length_in_s": 0}, "`audio_length_in_s` must be .* got 0"),
        ({"prompt": "piano", "audio_length_in_s": 3600}, "greater than 0 and at most 600, got 3600"),
        ({"prompt": "piano", "audio_length_in_s": float("nan")}, "`audio_length_in_s` must be .* got nan"),
        ({"prompt": "piano", "audio_length_in_s": "10"}, "`audio_length_in_s` must be .* got '10'"),
        ({"prompt": "piano", "num_inference_steps": 0}, "`num_inference_steps` must be an integer of at least 1"),
        ({"prompt": "piano", "num_inference_steps": 2.5}, "`num_inference_steps` must be .* got 2.5"),
        ({"prompt": "piano", "num_inference_steps": 1001}, "at least 1 and at most 1000, got 1001"),
        ({"prompt": "piano", "num_waveforms_per_prompt": 0}, "`num_waveforms_per_prompt` must be an integer"),
        ({"prompt": "piano", "guidance_scale": -1}, "`guidance_scale` must be a number at least 0, got -1"),
        ({"prompt": "piano", "guidance_scale": None}, "`guidance_scale` must be a number at least 0, got None"),
        ({"prompt": "piano", "quality_guidance_scale": float("inf")}, "`quality_guidance_scale` must be"),
        ({"prompt": "piano", "guidance_interval": (0.5, 0.5)}, "`guidance_interval` must be two rising fractions"),
        ({"prompt": "piano", "guidance_interval": (0, 2)}, "`guidance_interval` must be two rising fractions"),
        ({"prompt": "piano", "guidance_interval": 0.5}, "`guidance_interval` must be two rising fractions"),
        ({"prompt": "piano", "eta": 1.5}, "`eta` must be a number at least 0 and at most 1, got 1.5"),
        ({"prompt": "piano", "eta": 0.5}, "`eta` must be 0 for DPMSolverMultistepScheduler, got 0.5"),
        ({"prompt": "piano", "output_type": "wav"}, "`output_type` must be among 'np', 'pt', 'latent', got 'wav'"),
        (
            {"prompt": "piano", "callback_on_step_end_tensor_inputs": ["mel"]},
            "`callback_on_step_end_tensor_inputs` must be among 'latents', 'prompt_embeds', got 'mel'",
        ),
        ({"prompt": "piano", "generator": [torch.Generator()] * 2}, "one for each of the 1 waveforms"),
        (
            {"prompt": "piano", "latents": torch.zeros(1, 4, 15, 4)},
            "`latents` must have shape \\(1, 4, 16, 4\\) for this call, got \\(1, 4, 15, 4\\)",
        ),
    ],
)
def test_wrong_arguments_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_unknown_arguments_are_refused(pipe):
    with pytest.raises(TypeError, match="unexpected keyword argument 'guidance'"):
        pipe("piano", guidance=3)
