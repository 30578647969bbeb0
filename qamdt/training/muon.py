"""Muon with the inside in float32, for processors without bfloat16 instructions.

`torch.optim.Muon` orthogonalises its updates in bfloat16. Where the processor has no instructions for that, a product of
matrices takes fifty times longer than in float32, and the optimizer longer than all else.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch


class Float32Muon(torch.optim.Optimizer):
    """Does what `torch.optim.Muon` does, with the same arguments and state, in float32 and for all matrices of one
    shape at once.

    Args:
        params: Matrices, or groups of them.
        lr: Learning rate.
        weight_decay: Decoupled decay of the weights.
        momentum: Decay of the averaged gradient.
        nesterov: Whether the update looks ahead.
        ns_coefficients: Of the first, third and fifth power in the iteration.
        eps: Smallest norm that an update is divided by.
        ns_steps: Iterations.
        adjust_lr_fn: "match_rms_adamw" scales updates to the size of AdamW's; "original", or `None`, as Muon came.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ):
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(f'`adjust_lr_fn` must be "original" or "match_rms_adamw", got {adjust_lr_fn!r}.')
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim != 2:
                    raise ValueError(f"`params` must be matrices, got one of shape {tuple(weight.shape)}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all weights; `closure` is as in every optimizer of PyTorch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in _by_shape(group["params"]):
                self._update(weights, group)
        return loss

    def _update(self, weights: list[torch.Tensor], group: dict) -> None:
        """Updates weights of one shape."""
        gradients = [weight.grad.float() for weight in weights]
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
        updates = orthogonalize(torch.stack(list(updates)), group["ns_coefficients"], group["ns_steps"], group["eps"])

        rows, columns = weights[0].shape
        is_matched = group["adjust_lr_fn"] == "match_rms_adamw"
        factor = 0.2 * math.sqrt(max(rows, columns)) if is_matched else math.sqrt(max(1, rows / columns))
        learning_rate = float(group["lr"])
        torch._foreach_mul_(weights, 1 - learning_rate * group["weight_decay"])
        torch._foreach_add_(weights, list(updates.unbind()), alpha=-learning_rate * factor)


def orthogonalize(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> torch.Tensor:
    """Brings the singular values of matrices `(batch, rows, columns)` close to one by Newton-Schulz iteration.

    Args:
        matrices: What to orthogonalise, in float32.
        coefficients: Of the first, third and fifth power.
        num_steps: Iterations.
        eps: Smallest norm that a matrix is divided by.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    if is_tall:
        matrices = matrices.transpose(1, 2)
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    first, third, fifth = coefficients
    for _ in range(num_steps):
        gram = matrices @ matrices.transpose(1, 2)
        gram = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
        matrices = torch.baddbmm(matrices, gram, matrices, beta=first)
    return matrices.transpose(1, 2) if is_tall else matrices


def _by_shape(parameters: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Groups the parameters that have a gradient by shape."""
    groups = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            groups[parameter.shape].append(parameter)
    return list(groups.values())
