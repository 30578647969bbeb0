"""Optimal transport between audio and text tokens: this package beside geomloss and POT, forward and backward.

    python -m benchmarks.sinkhorn_speed

Needs `pip install geomloss POT`. POT's exact solver is the truth that values and text-side gradients are compared with.
Clips and prompts are random and full, because geomloss and POT's batched solver know no masks: a hard case, in which all
distances are nearly equal.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import ot
import torch
from geomloss import SamplesLoss
from torch.nn import functional as F

from whisq.sinkhorn import sinkhorn_distance


def exact(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """POT's network simplex, clip by clip, with its plan held fixed for the gradient."""
    distances = []
    for points in zip(source, target, strict=True):
        cost = torch.cdist(*points, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
        weights = [np.full(len(cloud), 1 / len(cloud)) for cloud in points]
        plan = ot.emd(*weights, cost.detach().double().numpy(), numItermax=1_000_000)
        distances.append((torch.from_numpy(plan).float() * cost).sum())
    return torch.stack(distances)


def make_solvers(blur: float) -> dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """All solvers, at the same blur where they have one."""

    def ours(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        masks = [torch.ones(cloud.shape[:2], dtype=torch.bool) for cloud in (source, target)]
        return sinkhorn_distance(source, masks[0], target, masks[1], blur=blur, normalize=False)

    def geomloss(scaling: float, debias: bool) -> SamplesLoss:
        return SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, debias=debias, backend="tensorized")

    def pot_sinkhorn(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        result = ot.batch.solve_sample_batch(source, target, reg=2 * blur**2, max_iter=200, tol=1e-6, grad="envelope")
        return result.value_linear / 2  # its cost is the squared distance, not half of it

    return {
        "exact (POT)": exact,
        "whisq": ours,
        "geomloss, as it comes": geomloss(0.5, debias=True),
        "geomloss, not debiased": geomloss(0.5, debias=False),
        "geomloss, not debiased, scaling 0.9": geomloss(0.9, debias=False),
        "POT, batched Sinkhorn, 200 iterations": pot_sinkhorn,
    }


def measure(solver: Callable, source: torch.Tensor, target: torch.Tensor, num_rounds: int) -> tuple:
    """Lowest CPU time of a forward and backward pass, with the distances and the gradient to the text."""
    durations = []
    for _ in range(num_rounds):
        target = target.detach().requires_grad_()
        started = time.process_time()
        distances = solver(source, target)
        distances.sum().backward()
        durations.append(time.process_time() - started)
    return min(durations), distances.detach(), target.grad


def main() -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8, help="clips (%(default)s)")
    parser.add_argument("--audio-tokens", type=int, default=1500, help="tokens of a clip (%(default)s)")
    parser.add_argument("--text-tokens", type=int, default=32, help="tokens of a prompt (%(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="width of the tokens (%(default)s)")
    parser.add_argument("--num-rounds", type=int, default=3, help="repetitions, the fastest counts (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = torch.randn(arguments.batch_size, arguments.audio_tokens, arguments.dim)
    target = torch.randn(arguments.batch_size, arguments.text_tokens, arguments.dim)
    raw = F.layer_norm(source, source.shape[2:]), target
    features = {
        "raw, blur 0.05": (raw, 0.05),
        "length 1, blur 0.02": ([F.normalize(cloud, dim=2) for cloud in raw], 0.02),
    }
    for name, (clouds, blur) in features.items():
        truth = None
        for solver_name, solver in make_solvers(blur).items():
            seconds, distances, gradient = measure(solver, *clouds, arguments.num_rounds)
            truth = truth or (distances, gradient)
            cosines = F.cosine_similarity(gradient.flatten(1), truth[1].flatten(1))
            row = {
                "features": name,
                "solver": solver_name,
                "cpu_seconds": round(seconds, 4),
                "value_error": round(((distances - truth[0]) / truth[0]).abs().max().item(), 5),
                "gradient_cosine": round(cosines.min().item(), 5),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
