"""Muon in float32 does what PyTorch's does."""

import copy

import pytest
import torch

from qamdt.training.muon import Float32Muon, orthogonalize


@pytest.mark.parametrize("adjust_lr_fn", ["match_rms_adamw", "original"])
def test_updates_are_those_of_pytorch_up_to_bfloat16(adjust_lr_fn):
    torch.manual_seed(0)
    ours = [torch.randn(32, 16, requires_grad=True), torch.randn(16, 48, requires_grad=True)]
    ours += [torch.randn(32, 16, requires_grad=True)]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust_lr_fn}
    optimizers = Float32Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    before = [weight.detach().clone() for weight in ours]
    for _ in range(3):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other, start in zip(ours, theirs, before, strict=True):
        moved = (other - start).norm()
        assert (own - other).norm() < 0.02 * moved  # bfloat16 has two to three digits
        assert moved > 0


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    matrices = orthogonalize(torch.randn(2, 64, 24), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(matrices)
    assert 0.6 < values.min()
    assert values.max() < 1.3


def test_a_state_of_pytorch_is_taken_over():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    theirs = torch.optim.Muon([weight], lr=0.1)
    weight.grad = torch.eye(4)
    theirs.step()
    ours = Float32Muon([weight], lr=0.1)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.state[weight]["momentum_buffer"], theirs.state[weight]["momentum_buffer"])
    ours.step()
