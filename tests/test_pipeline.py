"""What a call of the pipeline promises: reproducible, batched, any length, any scheduler, diffusers' conventions."""

import diffusers
import numpy as np
import pytest
import torch

from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.samplers import SAMPLERS, make_scheduler


KARRAS_FAMILY = """
    DDIMScheduler DDPMScheduler DEISMultistepScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler
    EulerAncestralDiscreteScheduler EulerDiscreteScheduler HeunDiscreteScheduler KDPM2AncestralDiscreteScheduler
    KDPM2DiscreteScheduler LMSDiscreteScheduler PNDMScheduler UniPCMultistepScheduler
""".split()


def generate(pipe, prompt="calm piano melody", *, seed=0, **changes):
    generator = changes.pop("generator", torch.Generator().manual_seed(seed))
    return pipe(prompt, **{"num_inference_steps": 3, "generator": generator} | changes).audios


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_same_seed_gives_the_same_waveform_and_another_seed_another(pipe):
    first = generate(pipe)
    assert np.array_equal(first, generate(pipe))
    assert not np.allclose(first, generate(pipe, seed=1))
    assert np.isfinite(first).all()
    assert first.std() > 0


def test_a_batch_of_prompts_equals_single_calls(pipe):
    prompts = ["calm piano", "a fast guitar melody , drums"]
    together = generate(pipe, prompts, generator=generators(0, 1), quality=["high", "low"])
    for i, (prompt, quality) in enumerate(zip(prompts, ["high", "low"], strict=True)):
        alone = generate(pipe, prompt, seed=i, quality=quality)
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-5)


def test_several_waveforms_per_prompt_lie_in_a_row(pipe):
    audios = generate(pipe, ["piano", "drums"], num_waveforms_per_prompt=2, generator=generators(0, 1, 0, 1))
    assert audios.shape[0] == 4
    np.testing.assert_allclose(audios[1:2], generate(pipe, "piano", seed=1), atol=1e-5)
    np.testing.assert_allclose(audios[2:3], generate(pipe, "drums", seed=0), atol=1e-5)


@pytest.mark.parametrize("seconds", [0.001, 0.1, 0.32, 0.333, 1.0, 2.5])
def test_seconds_equal_samples(pipe, seconds):
    assert generate(pipe, audio_length_in_s=seconds).shape == (1, round(seconds * 16_000))


def test_the_default_length_is_the_one_the_network_was_built_for(pipe):
    assert pipe.sampling_rate == 16_000
    assert generate(pipe).shape == (1, 16 * 2 * 160)


def test_only_the_length_asked_for_is_allocated(pipe):
    assert generate(pipe, audio_length_in_s=0.1, output_type="latent").shape == (1, 4, 6, 4)
    assert generate(pipe, audio_length_in_s=1.0, output_type="latent").shape == (1, 4, 50, 4)


def test_output_types_hold_the_same_sound(pipe):
    waveform = generate(pipe)
    tensor = generate(pipe, output_type="pt")
    latents = generate(pipe, output_type="latent")
    assert isinstance(waveform, np.ndarray)
    np.testing.assert_array_equal(tensor.numpy(), waveform)
    np.testing.assert_array_equal(pipe.decode(latents).numpy(), waveform)


def test_tuple_and_output_object_hold_the_same(pipe):
    (audios,) = pipe("piano", num_inference_steps=2, generator=generators(0), return_dict=False)
    np.testing.assert_array_equal(audios, generate(pipe, "piano", num_inference_steps=2))


def test_given_latents_take_the_place_of_the_seed(pipe):
    latents = torch.randn(1, 4, 16, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(generate(pipe, latents=latents, seed=7), generate(pipe, seed=0))


def test_given_text_states_equal_the_prompt(pipe):
    states, mask = pipe.encode_prompt(["high quality, calm piano", "high quality, a fast guitar melody"])
    negative_states, negative_mask = pipe.encode_prompt(["", ""])
    audios = pipe(
        prompt_embeds=states,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative_states,
        negative_prompt_attention_mask=negative_mask,
        num_inference_steps=3,
        generator=generators(0, 1),
    ).audios
    expected = generate(pipe, ["calm piano", "a fast guitar melody"], generator=generators(0, 1))
    np.testing.assert_allclose(audios, expected, atol=1e-6)


def test_scale_one_means_no_guidance(pipe):
    unguided = generate(pipe, guidance_scale=1, negative_prompt="drums")
    assert not pipe.do_classifier_free_guidance
    np.testing.assert_array_equal(unguided, generate(pipe, guidance_scale=1))
    np.testing.assert_allclose(unguided, generate(pipe, guidance_scale=1 + 1e-6), atol=1e-4)
    assert np.abs(generate(pipe, guidance_scale=3) - unguided).max() > 1e-4


def test_the_negative_prompt_matters_when_guided(pipe):
    assert np.abs(generate(pipe, negative_prompt="drums") - generate(pipe)).max() > 1e-5


def test_guidance_outside_its_interval_is_left_out(pipe):
    full = generate(pipe, num_inference_steps=4, guidance_interval=(0, 1))
    np.testing.assert_array_equal(full, generate(pipe, num_inference_steps=4))
    assert np.abs(generate(pipe, num_inference_steps=4, guidance_interval=(0.25, 0.75)) - full).max() > 1e-5
    tiny = generate(pipe, num_inference_steps=4, guidance_interval=(0.9, 0.95))  # between two steps
    np.testing.assert_array_equal(tiny, generate(pipe, num_inference_steps=4, guidance_scale=1))


def test_separate_guidance_with_equal_text_is_joint_guidance_by_quality(pipe):
    states, mask = pipe.encode_prompt("high quality, piano")
    same_text = {
        "prompt_embeds": states,
        "negative_prompt_embeds": states,
        "num_inference_steps": 3,
        "output_type": "latent",
    }
    separate = pipe(**same_text, guidance_scale=5, quality_guidance_scale=3, generator=generators(0)).audios
    joint = pipe(**same_text, guidance_scale=3, generator=generators(0)).audios
    torch.testing.assert_close(separate, joint, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scales", [(1, 1), (1, 2.0), (2.0, 1), (2.0, 2.0)])
def test_separate_guidance_runs_with_any_scale_off(pipe, scales):
    guidance_scale, quality_guidance_scale = scales
    generate(pipe, guidance_scale=guidance_scale, quality_guidance_scale=quality_guidance_scale)
    assert pipe.do_classifier_free_guidance == (scales != (1, 1))


@pytest.mark.parametrize("name", KARRAS_FAMILY)
def test_any_scheduler_of_the_family_works(pipe, name):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    audios = generate(pipe, num_inference_steps=4)
    assert audios.shape == (1, 5120)
    assert np.isfinite(audios).all()
    np.testing.assert_array_equal(audios, generate(pipe, num_inference_steps=4))


@pytest.mark.parametrize("name", SAMPLERS)
def test_named_samplers_keep_the_noise_schedule(pipe, name):
    scheduler = make_scheduler(name, pipe.scheduler)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_start == 0.0015


def test_eta_draws_fresh_noise_from_the_generator(pipe):
    pipe.scheduler = make_scheduler("ddim", pipe.scheduler)
    fresh = generate(pipe, eta=1.0)
    np.testing.assert_array_equal(fresh, generate(pipe, eta=1.0))
    assert np.abs(fresh - generate(pipe)).max() > 1e-4


def test_the_callback_sees_every_step_and_can_replace_tensors(pipe):
    steps = []

    def keep_zero(pipeline, step, timestep, tensors):
        steps.append((step, int(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = generate(
        pipe,
        callback_on_step_end=keep_zero,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        output_type="latent",
    )
    assert [step for step, _, _ in steps] == [0, 1, 2]
    assert [timestep for _, timestep, _ in steps] == pipe.scheduler.timesteps.tolist()
    assert steps[0][2] == ["latents", "prompt_embeds"]
    assert latents.abs().max() == 0


def test_the_callback_can_change_the_text_and_stop(pipe):
    def change_text(pipeline, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] + 1}

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = True

    changed = generate(pipe, callback_on_step_end=change_text, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert np.abs(changed - generate(pipe)).max() > 1e-5
    assert np.abs(generate(pipe, callback_on_step_end=stop) - generate(pipe)).max() > 1e-5
    assert pipe.num_timesteps == 3


def test_half_precision_stays_close(pipe):
    expected = generate(pipe, output_type="latent")
    pipe.to(torch.bfloat16)
    latents = generate(pipe, output_type="latent")
    assert latents.dtype == torch.float32
    assert (latents - expected).abs().max() < 0.2
    waveform = generate(pipe)
    assert waveform.dtype == np.float32
    assert np.isfinite(waveform).all()


def test_components_build_an_equal_pipeline(pipe):
    assert set(pipe.components) == {"vae", "text_encoder", "tokenizer", "transformer", "scheduler", "vocoder"}
    twin = QAMDTPipeline(**pipe.components, quality_stats=pipe.config.quality_stats)
    np.testing.assert_array_equal(generate(twin), generate(pipe))


def test_without_text_encoder_text_states_are_enough(pipe):
    states, _ = pipe.encode_prompt("piano")
    negative_states, _ = pipe.encode_prompt("")
    pipe.text_encoder = pipe.tokenizer = None
    assert np.isfinite(
        pipe(prompt_embeds=states, negative_prompt_embeds=negative_states, num_inference_steps=2).audios
    ).all()
    assert np.isfinite(pipe(prompt_embeds=states, guidance_scale=1, num_inference_steps=2).audios).all()
    with pytest.raises(ValueError, match="has no text encoder; pass `prompt_embeds`"):
        generate(pipe)


def test_long_prompts_are_cut_off_with_a_warning(pipe, caplog):
    diffusers.utils.logging.enable_propagation()
    generate(pipe, "piano " * 300)
    diffusers.utils.logging.disable_propagation()
    assert "cut off after 128 tokens" in caplog.text


def test_a_network_without_quality_inputs_works(build_components):
    components = build_components(use_quality_token=False, use_frame_quality=False, use_global_quality=False)
    pipe = QAMDTPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    assert np.isfinite(generate(pipe)).all()


def test_overlapping_patches_and_odd_lengths_work(build_components):
    pipe = QAMDTPipeline(**build_components(patch_size=(3, 4), patch_overlap=(1, 0), sample_size=(17, 4)))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.num_latent_frames(0.12) == 7  # six would do for the sound; patches of 3 in steps of 2 cover 7
    assert generate(pipe, audio_length_in_s=0.12).shape == (1, 1920)


def test_caches_of_diffusers_keep_guided_and_unguided_steps_apart(pipe):
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e-9))
    cached = generate(pipe, num_inference_steps=4, guidance_interval=(0.0, 0.5))
    pipe.transformer.disable_cache()
    np.testing.assert_allclose(cached, generate(pipe, num_inference_steps=4, guidance_interval=(0.0, 0.5)), atol=1e-5)


def test_offloading_changes_nothing(pipe):
    expected = generate(pipe)
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    np.testing.assert_array_equal(generate(pipe), expected)
    pipe_order = pipe.model_cpu_offload_seq.split("->")
    assert set(pipe_order) == {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
