"""A network that is given turned latents does with them what it did with its own."""

import pytest
import torch

from pipelines.turn_latents import find_rotation, turn_network
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel


def build_network(**changes) -> QAMDTTransformer2DModel:
    torch.manual_seed(0)
    arguments = {
        "sample_size": (16, 4),
        "patch_size": (1, 4),
        "in_channels": 3,
        "num_layers": 3,
        "num_decoder_layers": 1,
    }
    arguments |= {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 8}
    network = QAMDTTransformer2DModel(**arguments | changes).eval()
    for parameter in network.parameters():  # new networks begin with zeros in the last layer
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_the_rotation_between_turned_columns_is_found():
    rotation = torch.linalg.qr(torch.randn(12, 12))[0]
    columns = torch.randn(500, 12)
    found, correlation = find_rotation(columns, columns @ rotation.T + 3)
    torch.testing.assert_close(found, rotation, atol=1e-4, rtol=0)
    assert correlation == pytest.approx(1)


@torch.no_grad()
def test_a_turned_network_turns_its_output():
    network, rotation = build_network(), torch.linalg.qr(torch.randn(12, 12))[0]
    latents = torch.randn(2, 3, 16, 4)

    def turn(values: torch.Tensor) -> torch.Tensor:
        return (values.transpose(1, 2).flatten(2) @ rotation.T).transpose(1, 2)[..., None]

    told = {"timestep": torch.tensor([10, 500]), "encoder_hidden_states": torch.randn(2, 5, 8)}
    own = network(latents, **told).sample
    turned = turn_network(network, rotation)(turn(latents), **told).sample
    torch.testing.assert_close(turned, turn(own), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"patch_size": (2, 4)}, {"patch_size": (1, 2)}, {"in_channels": 2}])
def test_other_patches_or_columns_are_refused(changes):
    with pytest.raises(ValueError, match="`transformer` must have patches"):
        turn_network(build_network(**changes), torch.eye(12))
