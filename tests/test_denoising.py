"""The denoising loop by itself: with a network that knows the answer it finds it, from noise and from half-way there."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from pipelines.denoising import denoise
from pipelines.guidance import Guidance
from qamdt.conditions import Conditions


CLEAN = torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(1))
TOLD = Conditions(texts=torch.zeros(2, 3, 8), mask=torch.ones(2, 3))


def schedule(scheduler_class=DDIMScheduler, num_steps=6):
    options = {"clip_sample": False} if scheduler_class is DDIMScheduler else {}
    scheduler = scheduler_class(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", **options)
    scheduler.set_timesteps(num_steps)
    return scheduler


def know_the_noise(model_input, timestep, branches):
    return [NOISE] * len(branches)


def run(scheduler, *, first=0, predict=know_the_noise, guidance=None, **changes):
    timesteps = scheduler.timesteps[first:]
    latents = scheduler.add_noise(CLEAN, NOISE, timesteps[:1])
    guidance = guidance or Guidance(TOLD, num_steps=len(timesteps))
    return denoise(predict, scheduler, latents, timesteps, guidance, **changes)


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("first", [0, 4])
def test_a_network_that_knows_the_noise_finds_the_clean_latents(scheduler_class, first):
    scheduler = schedule(scheduler_class)
    torch.testing.assert_close(run(scheduler, first=first), CLEAN, atol=1e-3, rtol=1e-3)


def test_guidance_moves_away_from_what_is_avoided():
    guidance = Guidance(TOLD, [TOLD, TOLD], [3.0, 2.0], num_steps=1)
    assert len(guidance.branches(0)) == 3
    wanted, first, second = torch.tensor(1.0), torch.tensor(0.5), torch.tensor(2.0)
    assert guidance.combine([wanted, first, second]) == 1 + (3 - 1) * (1 - 0.5) + (2 - 1) * (1 - 2)
    single = Guidance(TOLD, [TOLD], [3.5], num_steps=1)
    assert single.combine([wanted, first]) == 0.5 + 3.5 * (1 - 0.5)
    assert single.combine([wanted]) == wanted


def test_what_a_constraint_returns_goes_on_and_reaches_the_callback():
    scheduler = schedule()
    seen = []

    def keep_second_half(latents, step, timestep):
        latents = latents.clone()
        latents[:, :, 3:] = step
        return latents

    def watch(latents, step, timestep):
        seen.append((step, int(timestep)))
        assert (latents[:, :, 3:] == step).all()
        return latents

    def predict(model_input, timestep, branches):
        if seen:
            assert (model_input[:, :, 3:] == seen[-1][0]).all()
        return know_the_noise(model_input, timestep, branches)

    latents = run(scheduler, predict=predict, constrain=keep_second_half, callback=watch)
    assert seen == list(enumerate(scheduler.timesteps.tolist()))
    assert (latents[:, :, 3:] == 5).all()
    torch.testing.assert_close(latents[:, :, :3], CLEAN[:, :, :3], atol=1e-3, rtol=1e-3)


def test_an_interrupted_run_returns_what_it_has():
    steps = []

    def count(latents, step, timestep):
        steps.append(latents)
        return latents

    latents = run(schedule(), callback=count, is_interrupted=lambda: len(steps) == 2)
    assert len(steps) == 2
    assert latents is steps[-1]


def test_fresh_noise_comes_from_the_generator_for_schedulers_that_draw_some():
    def end(eta, seed):
        return run(schedule(), eta=eta, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(end(1.0, 0), end(1.0, 0))
    assert not torch.allclose(end(1.0, 0), end(1.0, 1))
    assert torch.equal(end(0.0, 0), end(0.0, 1))


def test_guided_steps_tell_the_network_what_to_avoid():
    other = Conditions(texts=torch.ones(2, 3, 8), mask=torch.ones(2, 3))
    guidance = Guidance(TOLD, [other], [3.0], interval=(0.5, 1.0), num_steps=6)
    assert [guidance.branches(step) for step in range(6)] == [[TOLD]] * 3 + [[TOLD, other]] * 3
    asked = []

    def predict(model_input, timestep, branches):
        asked.append(len(branches))
        return know_the_noise(model_input, timestep, branches)

    run(schedule(), predict=predict, guidance=guidance)
    assert asked == [1, 1, 1, 2, 2, 2]


def test_outputs_move_away_from_each_of_the_others():
    conditional, first, second = torch.tensor(1.0), torch.tensor(0.5), torch.tensor(3.0)
    guidance = Guidance(TOLD, [TOLD], [3.0], num_steps=1)
    assert guidance.combine([conditional]) == 1.0
    assert guidance.combine([conditional, first]) == 0.5 + 3.0 * (1.0 - 0.5)
    both = Guidance(TOLD, [TOLD, TOLD], [3.0, 2.0], num_steps=1)
    assert both.combine([conditional, first, second]) == 1.0 + 2.0 * 0.5 + 1.0 * -2.0
    with pytest.raises(ValueError, match="`scales` must hold a scale for each of the 1 `avoided`, got \\[\\]"):
        Guidance(TOLD, [TOLD], [], num_steps=1)


def test_replaced_texts_are_told_from_then_on():
    guidance = Guidance(TOLD, num_steps=2)
    guidance.replace_texts(torch.ones(2, 3, 8))
    assert (guidance.branches(1)[0].texts == 1).all()
    assert (TOLD.texts == 0).all()
