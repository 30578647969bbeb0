"""Optimal transport between padded clouds of points: how far the tokens of a clip are from the tokens of its prompt.

The blurred (entropic) problem is solved in the log domain, with the blur annealed from the spread of the costs down to
its final value. A prompt has few tokens, so in place of Sinkhorn's iterations, which near the end converge slowly and
then give a plausible distance with a wrong gradient, each step is Newton's for the prices of the targets alone
(https://arxiv.org/abs/1710.06635).

There is no debiasing: its term of the audio against itself is a constant, because the audio tokens are frozen, and
costs many times what the rest does.

Shapes: B batch, N source points, M target points, D width.
"""

import warnings

import torch
from torch.nn import functional as F


MISPLACED_ON_THE_WAY = 0.05  # share of the mass that may be misplaced when the temperature falls


def sinkhorn_distance(
    source: torch.Tensor,
    source_mask: torch.Tensor,
    target: torch.Tensor,
    target_mask: torch.Tensor,
    *,
    blur: float = 0.02,
    scaling: float = 0.8,
    normalize: bool = True,
) -> torch.Tensor:
    """Computes the optimal transport cost between two clouds, each real point weighing the same.

    The cost of a pair is half its squared distance. The gradient moves every point towards where the plan sends it,
    with the plan held fixed, as it is at the optimum; it flows to both clouds, and padding gets exactly none.

    Args:
        source: Points of shape `(batch, source_points, dim)`. The larger cloud, as a rule the audio tokens.
        source_mask: Shape `(batch, source_points)`, true for real points.
        target: Points of shape `(batch, target_points, dim)`.
        target_mask: Shape `(batch, target_points)`, true for real points.
        blur: Distance below which points are not told apart, in the unit of the points (after normalisation).
        scaling: Factor of the blur from one step to the next, below 1: the nearer to 1, the slower and the safer.
        normalize: Whether to scale all points to length 1 first, which makes the distance independent of the encoders.

    Returns:
        Distances in float32, of shape `(batch,)`.
    """
    with torch.autocast(source.device.type, enabled=False):
        source, target = clean_points(source, source_mask, normalize), clean_points(target, target_mask, normalize)
        cost = half_squared_distances(source, source_mask, target, target_mask)
        plan = transport_plan(cost.detach(), source_mask, target_mask, blur=blur, scaling=scaling)
        return (plan * cost).sum(dim=(1, 2))


def half_squared_distances(
    source: torch.Tensor, source_mask: torch.Tensor, target: torch.Tensor, target_mask: torch.Tensor
) -> torch.Tensor:
    """Half the squared distance of every pair of clean points, `(batch, source_points, target_points)`; 0 where padded.

    Both clouds are first moved by the mean of the source, which changes no distance and keeps float32 exact enough
    for clouds that lie far from the origin.
    """
    center = (source.detach().sum(dim=1) / source_mask.sum(dim=1, keepdim=True))[:, None]  # (B, 1, D)
    source, target = source - center, target - center
    squares = source.square().sum(dim=-1)[:, :, None] + target.square().sum(dim=-1)[:, None]
    cost = 0.5 * squares - source @ target.mT  # (B, N, M)
    return cost.masked_fill(~(source_mask[:, :, None] & target_mask[:, None]), 0.0)


@torch.no_grad()
def transport_plan(
    cost: torch.Tensor,
    source_mask: torch.Tensor,
    target_mask: torch.Tensor,
    *,
    blur: float = 0.02,
    scaling: float = 0.8,
    max_misplaced: float = 5e-3,
    max_steps: int = 1000,
) -> torch.Tensor:
    """Finds the cheapest way of moving evenly spread mass from the source to the target points, blurred a little.

    At given prices of the targets, every source point spreads its mass over them by a softmax. The prices are right
    when every target receives its share, and then a concave function of them, the dual value, is at its maximum. Each
    step is Newton's towards it, and only a quarter as long if it has led downhill. The temperature falls from the
    spread of the costs to blur²: a clip takes its next one when nearly all mass is in place at the one before, so that
    it gets the same plan in any batch.

    Args:
        cost: Costs of shape `(batch, source_points, target_points)`.
        source_mask: Shape `(batch, source_points)`, true for real points.
        target_mask: Shape `(batch, target_points)`, true for real points.
        blur: Square root of the final temperature.
        scaling: Factor of the blur from one temperature to the next.
        max_misplaced: Share of the mass that may be at another target than the one it is due at. A warning tells when
            more than twice as much is, after `max_steps`.
        max_steps: Steps after which it is given up.

    Returns:
        The plan in the shape of `cost`. A column of a real target sums to 1 over the number of real targets, a row of
        a real source point to nearly 1 over the number of those; padding carries nothing.
    """
    if not 0 < scaling < 1 or blur <= 0:
        raise ValueError(f"`blur` must be positive and `scaling` between 0 and 1, got {blur} and {scaling}.")
    source_weights, target_weights = uniform_weights(source_mask), uniform_weights(target_mask)
    log_target_weights = target_weights.log()[:, None]  # (B, 1, M), -inf where padded
    # The prices do not see what is common to a row; without it the numbers are small and so more exact.
    cost = cost - cost.masked_fill(~target_mask[:, None], torch.inf).amin(dim=-1, keepdim=True)
    cost = cost.masked_fill(~(source_mask[:, :, None] & target_mask[:, None]), 0.0)

    temperature = cost.amax(dim=(1, 2)).clamp(min=blur**2)  # (B,)
    rounding = 1e-6 * temperature
    prices = old_prices = torch.zeros_like(target_weights)  # (B, M)
    raises = torch.zeros_like(target_weights)
    old_value = torch.full_like(temperature, -torch.inf)
    is_done = torch.zeros_like(temperature, dtype=torch.bool)
    for step in range(max_steps):
        logits = (prices[:, None] - cost) / temperature[:, None, None] + log_target_weights  # (B, N, M)
        shares = logits.softmax(dim=-1)
        plan = source_weights[:, :, None] * shares
        misplaced = (target_weights - plan.sum(dim=1)).clamp(min=0).sum(dim=1)  # (B,)
        value = (target_weights * prices).sum(dim=1)
        value = value - temperature * (source_weights * logits.logsumexp(dim=-1)).sum(dim=1)
        is_last = temperature <= blur**2
        is_done = is_done | (is_last & (misplaced <= max_misplaced))
        if step % 4 == 0 and is_done.all():  # asked now and then, as a GPU has to be waited for
            break

        is_worse = value < old_value - rounding  # downhill: back, and a shorter step
        is_cooler = ~is_worse & ~is_last & (misplaced <= MISPLACED_ON_THE_WAY)
        new_raises = temperature[:, None] * newton_step(plan, shares, target_weights)
        raises = torch.where(is_worse[:, None], 0.25 * raises, new_raises)
        old_prices = torch.where(is_worse[:, None], old_prices, prices)
        old_value = torch.where(is_worse, old_value, value).masked_fill(is_cooler, -torch.inf)
        prices = torch.where(is_done[:, None], prices, old_prices + raises)
        temperature = torch.where(is_cooler, (temperature * scaling**2).clamp(min=blur**2), temperature)
    if (misplaced > 2 * max_misplaced).any():
        warnings.warn(
            f"the transport is not solved: {misplaced.max():.0%} of the mass is misplaced after {max_steps} steps; take "
            f"a larger `blur` than {blur:g}.",
            stacklevel=3,
        )
    return plan * (target_weights / plan.sum(dim=1).clamp(min=1e-30))[:, None]


def newton_step(plan: torch.Tensor, shares: torch.Tensor, target_weights: torch.Tensor) -> torch.Tensor:
    """Computes by how much the prices are to rise, in units of the temperature, for all targets to get their share.

    Args:
        plan: Mass from each source point to each target `(batch, source_points, target_points)`.
        shares: The same, over the mass of the source point.
        target_weights: Mass that each target should receive `(batch, target_points)`, 0 for padding.

    Returns:
        Raises `(batch, target_points)`, at most 10 up or down, 0 for padding.
    """
    received = plan.sum(dim=1)  # (B, M)
    slopes = torch.diag_embed(received) - plan.mT @ shares  # of `received`, by the prices (B, M, M)
    # A rise of all prices alike changes nothing, nor does that of a target out of reach: damping decides these.
    damping = torch.where(target_weights > 0, 0.01 * target_weights, 1.0)
    raises = torch.linalg.solve(slopes + torch.diag_embed(damping), target_weights - received)
    return raises.clamp(-10.0, 10.0)


def uniform_weights(mask: torch.Tensor) -> torch.Tensor:
    """Weights in float32 that sum to 1 over the real points of each cloud."""
    return mask.float() / mask.sum(dim=1, keepdim=True)


def clean_points(points: torch.Tensor, mask: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Points in float32, of length 1 if wanted, and zeros for padding, so that not even NaN in it gets through."""
    points = points.float().masked_fill(~mask[:, :, None], 0.0)
    return F.normalize(points, dim=-1) if normalize else points
