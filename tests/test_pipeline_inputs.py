"""Every wrong argument of a call is refused before anything is computed, with a message that says what is right."""

import diffusers
import pytest
import torch


EMBEDS = torch.zeros(2, 3, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "`prompt` must be a text or a list of at least one text, got \\[\\]"),
        ({"prompt": 3}, "`prompt` must be a text or a list of at least one text, got 3"),
        ({"prompt": ["piano", None]}, "`prompt` must be a text or a list of at least one text"),
        ({"prompt": "caf\udce9"}, "`prompt` must be text in UTF-8, got 'caf"),
        ({"prompt": [(0.0, "piano"), (0.5, "\ud800")]}, "`prompt` must be text in UTF-8"),
        ({"prompt": "piano", "negative_prompt": ["\ud800"]}, "`negative_prompt` must be text in UTF-8"),
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
        ({"prompt": "piano", "generator": 42}, "`generator` must be .*got 42; for a seed write .*manual_seed"),
        ({"prompt": "piano", "generator": [42]}, "`generator` must be a torch.Generator or a list of them"),
        ({"prompt": "piano", "guidance_interval": ("0", "1")}, "`guidance_interval` must be two rising fractions"),
        ({"prompt": "piano", "guidance_interval": None}, "`guidance_interval` must be two rising fractions"),
        ({"prompt": "piano", "guidance_interval": "ab"}, "`guidance_interval` must be two rising fractions"),
        ({"prompt": "piano", "latents": [0.0]}, "`latents` must be a tensor of finite floating-point numbers"),
        ({"prompt": "piano", "latents": torch.ones(1, 4, 16, 4).long()}, "`latents` must be a tensor of finite float"),
        ({"prompt": "piano", "latents": torch.full((1, 4, 16, 4), torch.nan)}, "`latents` must .* with NaN"),
        ({"prompt": "piano", "callback_on_step_end": "print"}, "`callback_on_step_end` must be a function or None"),
        ({"prompt": "piano", "callback_on_step_end_tensor_inputs": "latents"}, "must be a list of some of 'latents'"),
        ({"prompt": "piano", "callback_on_step_end_tensor_inputs": None}, "must be a list of some of 'latents'"),
        ({"prompt_embeds": [[0.0]]}, "`prompt_embeds` must be a tensor of finite floating-point numbers"),
        ({"prompt_embeds": EMBEDS * torch.nan}, "`prompt_embeds` must be a tensor of finite"),
        ({"prompt_embeds": EMBEDS, "prompt_attention_mask": True}, "`prompt_attention_mask` must be a tensor"),
        (
            {"prompt_embeds": EMBEDS, "prompt_attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])},
            "`prompt_attention_mask` must leave at least one token",
        ),
        ({"prompt": "piano", "audio_length_in_s": 1e-9}, "`audio_length_in_s` must be at least one sample"),
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


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(1), "must return None or a dictionary with some of 'latents', 'prompt_embeds'"),
        ({"mel": None}, "must return None or a dictionary with some of 'latents', 'prompt_embeds'"),
        ({"latents": torch.zeros(2)}, "must return latents of shape \\(1, 4, 16, 4\\), got \\(2,\\)"),
        ({"latents": None}, "must return latents of shape \\(1, 4, 16, 4\\), got None"),
    ],
)
def test_what_a_callback_must_not_return_is_refused(pipe, returned, message):
    with pytest.raises(ValueError, match=f"`callback_on_step_end` {message}"):
        pipe("piano", num_inference_steps=1, callback_on_step_end=lambda *arguments: returned)


def test_errors_and_warnings_quote_no_more_than_the_beginning(pipe, caplog):
    diffusers.utils.logging.enable_propagation()
    with pytest.raises(ValueError, match="must be a text") as raised:
        pipe([3, "piano " * 1000])
    pipe("piano " * 1000, num_inference_steps=1)
    diffusers.utils.logging.disable_propagation()
    assert len(str(raised.value)) < 300
    assert "cut off after 128 tokens" in caplog.text
    assert len(caplog.text) < 500
