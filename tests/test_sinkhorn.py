import numpy as np
import pytest
import torch
from torch.nn import functional as F

from whisq.gromov_wasserstein import gromov_wasserstein_distance
from whisq.sinkhorn import sinkhorn_distance, transport_plan
from whisq.training.config import load_config
from whisq.training.loss import contrastive_loss


NUM_SOURCES, NUM_TARGETS, DIM = (150, 60, 100), (12, 5, 3), 64
# Blur and normalisation: this package's own choice on features of any scale, and the paper's on raw ones.
SETTINGS = {"normalized": {"normalize": True, "blur": 0.02}, "raw": {"normalize": False, "blur": 0.05}}


def make_clouds(seed=0):
    """Layer-normed tokens as frozen encoders give them, padded to the longest of three clips."""
    generator = torch.Generator().manual_seed(seed)
    source = F.layer_norm(torch.randn(3, max(NUM_SOURCES), DIM, generator=generator), (DIM,))
    target = torch.randn(3, max(NUM_TARGETS), DIM, generator=generator)
    source_mask = torch.arange(max(NUM_SOURCES)) < torch.tensor(NUM_SOURCES)[:, None]
    target_mask = torch.arange(max(NUM_TARGETS)) < torch.tensor(NUM_TARGETS)[:, None]
    return source, source_mask, target, target_mask


def make_clustered_clouds(seed, num_targets):
    """Tokens that lie around a few centres which text and audio share: many costs are equal, many nearly nothing."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(8, DIM, generator=generator)
    source, target = (
        centers[torch.randint(8, (1, size), generator=generator)]
        + 0.1 * torch.randn(1, size, DIM, generator=generator)
        for size in (150, num_targets)
    )
    masks = [torch.ones(cloud.shape[:2], dtype=torch.bool) for cloud in (source, target)]
    return source, masks[0], target, masks[1]


def preset_settings(preset):
    config = load_config(preset).loss
    return {"blur": config.blur, "scaling": config.scaling, "normalize": config.normalize}


def exact_transport(source, target, normalize):
    """Value of POT's exact solver and its gradient to `target`, in float64."""
    ot = pytest.importorskip("ot")
    source, target = source.double(), target.double().requires_grad_()
    points = [F.normalize(cloud, dim=-1) if normalize else cloud for cloud in (source, target)]
    cost = torch.cdist(*points).square() / 2
    weights = [np.full(len(cloud), 1 / len(cloud)) for cloud in points]
    plan = torch.from_numpy(ot.emd(*weights, cost.detach().numpy(), numItermax=1_000_000))
    value = (plan * cost).sum()
    value.backward()
    return value.item(), target.grad


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("outlier", [0.0, 100.0], ids=["even", "with an outlying feature"])
def test_distances_and_text_side_gradients_are_those_of_the_exact_solver(settings, seed, outlier):
    source, source_mask, target, target_mask = make_clouds(seed)
    source[..., 0] += outlier
    target[..., 0] *= 1 + outlier
    target.requires_grad_()
    distances = sinkhorn_distance(source, source_mask, target, target_mask, **settings)
    distances.sum().backward()
    for clip in range(3):
        real = target_mask[clip]
        value, gradient = exact_transport(
            source[clip][source_mask[clip]], target[clip][real].detach(), settings["normalize"]
        )
        assert distances[clip].item() == pytest.approx(value, rel=0.01)
        ours = target.grad[clip][real].double()
        assert F.cosine_similarity(ours.flatten(), gradient.flatten(), dim=0) > 0.99
        assert ours.norm() == pytest.approx(gradient.norm().item(), rel=0.02)


@pytest.mark.parametrize("settings", ["paper", "default", "mini", {"normalize": True, "blur": 0.01, "scaling": 0.5}])
def test_clouds_that_share_their_centers_are_matched_as_by_the_exact_solver(settings):
    settings = settings if isinstance(settings, dict) else preset_settings(settings)
    annealing = {name: settings[name] for name in ("blur", "scaling")}
    for seed, num_targets in ((0, 12), (1, 40)):
        source, source_mask, target, target_mask = make_clustered_clouds(seed, num_targets)
        target.requires_grad_()
        distance = sinkhorn_distance(source, source_mask, target, target_mask, **settings)
        distance.sum().backward()
        value, gradient = exact_transport(source[0], target[0].detach(), settings["normalize"])
        assert distance.item() == pytest.approx(value, rel=0.03)
        assert F.cosine_similarity(target.grad[0].double().flatten(), gradient.flatten(), dim=0) > 0.98
        points = [
            F.normalize(cloud.detach(), dim=-1) if settings["normalize"] else cloud for cloud in (source, target)
        ]
        plan = transport_plan(torch.cdist(*points).square().detach() / 2, source_mask, target_mask, **annealing)
        misplaced = (plan.sum(dim=2) - 1 / 150).clamp(min=0).sum()
        assert misplaced < 0.01


def test_a_transport_that_is_not_solved_is_warned_of():
    source, source_mask, target, target_mask = make_clustered_clouds(0, 12)
    cost = torch.cdist(source, target).square() / 2
    with pytest.warns(
        UserWarning, match="the transport is not solved: [0-9]+% of the mass is misplaced after 3 steps"
    ):
        transport_plan(cost, source_mask, target_mask, max_steps=3)


def test_distances_agree_with_geomloss_where_that_has_no_masks_to_know_of():
    geomloss = pytest.importorskip("geomloss")
    source, _, target, _ = make_clouds()
    masks = torch.ones(source.shape[:2], dtype=torch.bool), torch.ones(target.shape[:2], dtype=torch.bool)
    ours = sinkhorn_distance(source, masks[0], target, masks[1], blur=0.05, normalize=False)
    solver = geomloss.SamplesLoss("sinkhorn", p=2, blur=0.05, scaling=0.9, debias=False, backend="tensorized")
    torch.testing.assert_close(ours, solver(source, target), rtol=1e-3, atol=0)


@pytest.mark.parametrize("distance", [sinkhorn_distance, gromov_wasserstein_distance, contrastive_loss])
def test_padding_gets_no_gradient_and_gives_none_not_even_as_nan(distance):
    source, source_mask, target, target_mask = make_clouds()
    expected = distance(source, source_mask, target, target_mask)
    source = source.masked_fill(~source_mask[:, :, None], torch.nan).requires_grad_()
    target = target.masked_fill(~target_mask[:, :, None], torch.nan).requires_grad_()
    distances = distance(source, source_mask, target, target_mask)
    distances.sum().backward()
    torch.testing.assert_close(distances, expected, rtol=0, atol=0)
    for points, mask in ((source, source_mask), (target, target_mask)):
        assert (points.grad[~mask] == 0).all()
        assert (points.grad[mask].norm(dim=-1) > 0).all()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("distance", [sinkhorn_distance, gromov_wasserstein_distance])
def test_a_batch_gives_what_its_clips_give_alone(distance, settings):
    source, source_mask, target, target_mask = make_clouds()
    target[1] *= 30  # a clip with far larger costs must not change how the others are annealed
    target.requires_grad_()
    distances = distance(source, source_mask, target, target_mask, **settings)
    (batch_gradient,) = torch.autograd.grad(distances.sum(), target)
    for clip in range(3):
        cut_source = source[clip, None, : NUM_SOURCES[clip]]
        cut_target = target[clip, None, : NUM_TARGETS[clip]].detach().requires_grad_()
        masks = torch.ones(cut_source.shape[:2], dtype=torch.bool), torch.ones(cut_target.shape[:2], dtype=torch.bool)
        alone = distance(cut_source, masks[0], cut_target, masks[1], **settings)
        alone.sum().backward()
        torch.testing.assert_close(alone, distances[clip, None], rtol=1e-5, atol=1e-6)
        gradient = batch_gradient[clip, None, : NUM_TARGETS[clip]]
        torch.testing.assert_close(cut_target.grad, gradient, rtol=0, atol=2e-3 * gradient.abs().max().item())


def test_the_plan_moves_all_mass_and_only_between_real_points():
    source, source_mask, target, target_mask = make_clouds()
    cost = torch.cdist(source, target).square() / 2
    plan = transport_plan(cost, source_mask, target_mask, blur=0.5)
    assert (plan[~(source_mask[:, :, None] & target_mask[:, None])] == 0).all()
    torch.testing.assert_close(plan.sum(dim=1), target_mask / target_mask.sum(dim=1, keepdim=True))
    rows = source_mask / source_mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(plan.sum(dim=2), rows, rtol=0.05, atol=0)


def test_half_precision_and_autocast_are_computed_in_float32():
    source, source_mask, target, target_mask = make_clouds()
    source, target = source.bfloat16(), target.bfloat16()
    expected = sinkhorn_distance(source.float(), source_mask, target.float(), target_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances = sinkhorn_distance(source, source_mask, target, target_mask)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances, expected, rtol=0, atol=0)


def test_there_is_no_debiasing():
    """A debiased divergence of a cloud from itself is 0, the blurred cost of moving it onto itself is not."""
    points = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 50, dtype=torch.bool)
    assert sinkhorn_distance(points, mask, points, mask, blur=0.5, normalize=False).item() > 0.05


@pytest.mark.parametrize("wrong", [{"blur": 0.0}, {"scaling": 1.0}, {"scaling": 0.0}])
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="`blur` must be positive and `scaling` between 0 and 1"):
        sinkhorn_distance(*make_clouds(), **wrong)


def test_gromov_wasserstein_finds_matchings_as_good_as_those_of_pot():
    ot = pytest.importorskip("ot")
    source, source_mask, target, target_mask = make_clouds()
    distances = gromov_wasserstein_distance(source, source_mask, target, target_mask, normalize=False)
    for clip in range(3):
        clouds = source[clip][source_mask[clip]].double(), target[clip][target_mask[clip]].double()
        costs = [(torch.cdist(cloud, cloud).square() / 2).numpy() for cloud in clouds]
        weights = [np.full(len(cloud), 1 / len(cloud)) for cloud in clouds]
        value = ot.gromov.gromov_wasserstein2(*costs, *weights, "square_loss")
        assert distances[clip].item() == pytest.approx(value, rel=0.03)


def test_gromov_wasserstein_ignores_how_a_cloud_lies_in_space():
    points = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 30, dtype=torch.bool)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    moved = points.flip(1) @ rotation + 3.0
    assert gromov_wasserstein_distance(points, mask, moved, mask, normalize=False).item() < 1e-3
    assert sinkhorn_distance(points, mask, moved, mask, normalize=False).item() > 1
    stretched = gromov_wasserstein_distance(points, mask, 2 * moved, mask, normalize=False)
    assert stretched.item() > 1


def test_the_contrastive_loss_falls_when_prompts_lie_near_their_own_clips():
    source, source_mask, target, target_mask = make_clouds()
    near = source[:, : target.shape[1]] * 0.1 + source.mean(dim=1, keepdim=True)
    apart = contrastive_loss(source, source_mask, target, target_mask)
    assert (contrastive_loss(source, source_mask, near, target_mask) < apart).all()
    others = near.roll(1, dims=0)
    assert contrastive_loss(source, source_mask, others, target_mask.roll(1, dims=0)).mean() > apart.mean()


def test_clips_of_the_same_prompt_do_not_count_against_each_other():
    source, source_mask, target, target_mask = make_clouds()
    target, target_mask = target[:1].repeat(3, 1, 1), target_mask[:1].repeat(3, 1)
    losses = contrastive_loss(source, source_mask, target, target_mask)
    torch.testing.assert_close(losses, torch.zeros(3), rtol=0, atol=1e-6)
