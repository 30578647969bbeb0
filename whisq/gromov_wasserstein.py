"""The Gromov-Wasserstein distance, an alternative to optimal transport for clouds that need not lie in one space.

It compares only distances inside each cloud.

Shapes: B batch, N source points (audio tokens), M target points (text tokens).
"""

import torch

from whisq.sinkhorn import clean_points, half_squared_distances, transport_plan, uniform_weights


def gromov_wasserstein_distance(
    source: torch.Tensor,
    source_mask: torch.Tensor,
    target: torch.Tensor,
    target_mask: torch.Tensor,
    *,
    blur: float = 0.02,
    scaling: float = 0.8,
    normalize: bool = True,
    num_steps: int = 10,
) -> torch.Tensor:
    """Computes how much the distances inside one cloud differ from those inside the other, at the best matching found.

    That is the sum over pairs of matches of (half the squared distance of the sources minus that of the targets)²
    (https://proceedings.mlr.press/v48/peyre16.html). Finding the best matching is not convex: each step solves an
    optimal transport problem for the costs that the matching so far implies, from the matching of everything with
    everything on. The gradient is that with the matching held fixed.

    Args:
        source: Points of shape `(batch, source_points, source_dim)`.
        source_mask: Shape `(batch, source_points)`, true for real points.
        target: Points of shape `(batch, target_points, target_dim)`.
        target_mask: Shape `(batch, target_points)`, true for real points.
        blur: Blur of each transport problem, see `whisq.sinkhorn`.
        scaling: Annealing of each transport problem.
        normalize: Whether to scale all points to length 1 first.
        num_steps: Number of transport problems.

    Returns:
        Distances in float32, of shape `(batch,)`.
    """
    with torch.autocast(source.device.type, enabled=False):
        source, target = clean_points(source, source_mask, normalize), clean_points(target, target_mask, normalize)
        source_costs = half_squared_distances(source, source_mask, source, source_mask)  # (B, N, N)
        target_costs = half_squared_distances(target, target_mask, target, target_mask)  # (B, M, M)
        source_weights, target_weights = uniform_weights(source_mask), uniform_weights(target_mask)
        plan = source_weights[:, :, None] * target_weights[:, None]
        for _ in range(num_steps):
            # Slope of the sum below at the plan so far, without what is the same along a row or a column.
            cost = -2 * source_costs.detach() @ plan @ target_costs.detach()  # (B, N, M)
            plan = transport_plan(cost, source_mask, target_mask, blur=blur, scaling=scaling)
        own = _mean_square(source_costs, plan.sum(dim=2)) + _mean_square(target_costs, plan.sum(dim=1))
        return own - 2 * (plan * (source_costs @ plan @ target_costs)).sum(dim=(1, 2))


def _mean_square(costs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean of the squared costs inside clouds `(batch, points, points)`, weighted by `(batch, points)` on both sides."""
    return torch.einsum("bi,bij,bj->b", weights, costs.square(), weights)
