import pytest
import torch
from diffusers import DDPMScheduler

from qamdt.conditions import Conditions
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.training.config import LossConfig
from qamdt.training.dataset import Batch
from qamdt.training.loss import NoiseSchedule, diffusion_loss, draw, make_scheduler, passes_of_step, sample_keep_ids


SCHEDULER = DDPMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")


def make_batch(batch_size=4, seeds=None):
    return Batch(
        ids=["clip"] * batch_size,
        captions=[""] * batch_size,
        latents=torch.randn(batch_size, 2, 8, 4),
        conditions=Conditions(
            texts=torch.randn(batch_size, 3, 6),
            mask=torch.ones(batch_size, 3, dtype=torch.bool),
            levels={"clip": torch.ones(batch_size, dtype=torch.long), "global": torch.zeros(batch_size).long()},
            curves={"quality": torch.ones(batch_size, 8)},
        ),
        seeds=list(range(batch_size)) if seeds is None else seeds,
    )


def make_transformer():
    model = QAMDTTransformer2DModel(
        sample_size=(8, 4),
        patch_size=(2, 2),
        in_channels=2,
        num_layers=3,
        num_decoder_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=6,
    )
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    return model


def loss_of(transformer, batch, *, is_masked):
    config = LossConfig()
    draws = draw(batch, 8, config, mask_seed=0)
    return diffusion_loss(
        transformer,
        batch,
        draws,
        NoiseSchedule(config),
        config,
        model_config=transformer.config,
        is_masked=is_masked,
    )


def test_noise_and_targets_are_those_of_the_schedulers_of_inference():
    schedule = NoiseSchedule(LossConfig())
    latents, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    timesteps = torch.tensor([0, 400, 999])
    expected = SCHEDULER.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(schedule.add_noise(latents, noise, timesteps), expected)
    velocity = SCHEDULER.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(schedule.target(latents, noise, timesteps), velocity)
    assert NoiseSchedule(LossConfig(prediction_type="epsilon")).target(latents, noise, timesteps) is noise


def test_a_flow_is_the_one_of_its_scheduler():
    config = LossConfig(prediction_type="flow_prediction", flow_shift=3.0)
    schedule, scheduler = NoiseSchedule(config), make_scheduler(config)
    scheduler.set_timesteps(10)
    latents, noise = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    sample = noise
    for timestep, following in zip(scheduler.timesteps, [*scheduler.timesteps[1:], torch.tensor(0.0)], strict=True):
        torch.testing.assert_close(sample, schedule.add_noise(latents, noise, timestep[None]))
        sample = scheduler.step(schedule.target(latents, noise, timestep[None]), timestep, sample).prev_sample
        torch.testing.assert_close(sample, schedule.add_noise(latents, noise, following[None]))
    torch.testing.assert_close(sample, latents, atol=1e-5, rtol=1e-5)


def test_min_snr_weighs_the_same_error_in_the_clean_latents_alike():
    """A prediction of noise or of velocity that implies the same latents has the same weighted loss."""
    timesteps = torch.arange(1, 1000, 37)
    # An error of one in the latents is an error of sqrt(snr) in the noise, of sqrt(snr + 1) in the velocity of a
    # diffusion, and of 1 / sigma in that of a flow.
    for prediction_type, error in (
        ("epsilon", lambda snr, sigma: snr),
        ("v_prediction", lambda snr, sigma: snr + 1),
        ("flow_prediction", lambda snr, sigma: 1 / sigma**2),
    ):
        schedule = NoiseSchedule(LossConfig(prediction_type=prediction_type))
        signal, sigma = schedule.levels(timesteps)
        snr = (signal / sigma) ** 2
        weights = schedule.weights(5.0, timesteps) * error(snr, sigma)
        torch.testing.assert_close(weights, snr.clamp(max=5.0), rtol=1e-4, atol=1e-6)
        assert schedule.weights(None, timesteps).unique().tolist() == [1.0]


def test_a_sample_meets_the_same_noise_in_every_batch():
    together = draw(make_batch(4, seeds=[3, 1, 4, 5]), 8, LossConfig(), mask_seed=0)
    alone = draw(make_batch(1, seeds=[4]), 8, LossConfig(), mask_seed=0)
    assert together.timesteps[2] == alone.timesteps[0]
    torch.testing.assert_close(together.noise[2], alone.noise[0])
    torch.testing.assert_close(together.mask_noise[2], alone.mask_noise[0])


def test_timesteps_are_uniform():
    timesteps = draw(make_batch(4000), 1, LossConfig(), mask_seed=0).timesteps
    assert timesteps.min() < 5
    assert timesteps.max() > 994
    counts = torch.histc(timesteps.float(), bins=4, min=0, max=1000)
    assert counts.min() > 900


def test_times_of_a_flow_are_fractions_and_can_lie_in_the_middle_or_towards_noise():
    def times(**settings):
        config = LossConfig(prediction_type="flow_prediction", **settings)
        return draw(make_batch(2000), 1, config, mask_seed=0).timesteps / 1000

    assert times().mean() == pytest.approx(0.5, abs=0.03)
    assert (times() * 1000 % 1).std() > 0.2
    assert times(timestep_sampling="logit_normal").std() < 0.8 * times().std()
    assert times(flow_shift=3.0).mean() > 0.6
    with pytest.raises(ValueError, match="only `loss.prediction_type=flow_prediction` has a flow"):
        LossConfig(flow_shift=3.0)


def test_keep_ids_are_distinct_and_as_many_as_asked():
    keep_ids = sample_keep_ids(torch.rand(5, 10), mask_ratio=0.3)
    assert keep_ids.shape == (5, 7)
    assert all(len(set(row)) == 7 for row in keep_ids.tolist())


def test_mask_ratio_spans_its_range():
    ratios = [draw(make_batch(1), 8, LossConfig(), mask_seed=seed).mask_ratio for seed in range(200)]
    assert 0.3 <= min(ratios) < 0.32
    assert 0.48 < max(ratios) <= 0.5


def test_masked_pass_differs_from_the_full_one_and_trains_the_side_interpolator():
    torch.manual_seed(0)
    transformer, batch = make_transformer(), make_batch()
    full = loss_of(transformer, batch, is_masked=False)
    full.backward()
    assert transformer.mask_token.grad is None
    masked = loss_of(transformer, batch, is_masked=True)
    masked.backward()
    assert transformer.mask_token.grad.abs().sum() > 0
    assert full.item() != pytest.approx(masked.item(), rel=1e-6)


def test_loss_of_a_batch_is_the_mean_over_its_samples():
    torch.manual_seed(0)
    transformer = make_transformer()
    singles = [make_batch(1, seeds=[8]), make_batch(1, seeds=[9])]
    both = Batch(
        ids=["clip", "clip"],
        captions=["", ""],
        latents=torch.cat([single.latents for single in singles]),
        conditions=Conditions.cat([single.conditions for single in singles]),
        seeds=[8, 9],
    )
    losses = [loss_of(transformer, single, is_masked=False) for single in singles]
    torch.testing.assert_close(loss_of(transformer, both, is_masked=False), torch.stack(losses).mean())


def test_passes_of_a_step():
    assert [passes_of_step(LossConfig(passes="alternate"), step) for step in range(3)] == [[False], [True], [False]]
    assert passes_of_step(LossConfig(passes="both"), 7) == [False, True]
    assert passes_of_step(LossConfig(passes="full"), 7) == [False]
    assert passes_of_step(LossConfig(passes="masked"), 6) == [True]
