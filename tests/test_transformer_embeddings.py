"""Patches, positions and quality curves, one by one."""

import pytest
import torch

from qamdt.models.embeddings import (
    FrameQualityEmbedding,
    PatchEmbed,
    masked_mean,
    resample_positions,
    sinusoidal_positions,
)


@pytest.mark.parametrize("sample_size", [(8, 6), (9, 7), (10, 5), (3, 2)])
@pytest.mark.parametrize("patch_size", [(4, 3), (2, 2)])
@pytest.mark.parametrize("overlap", [(0, 0), (1, 1), (1, 0)])
def test_patches_put_together_again_are_the_latents(sample_size, patch_size, overlap):
    patch_embed = PatchEmbed(1, patch_size[0] * patch_size[1], patch_size, overlap)
    with torch.no_grad():  # each output feature is one element of the patch
        patch_embed.proj.weight.copy_(torch.eye(patch_embed.proj.out_channels).view_as(patch_embed.proj.weight))
        patch_embed.proj.bias.zero_()
    latents = torch.randn(2, 1, *sample_size)
    torch.testing.assert_close(patch_embed.unpatchify(patch_embed(latents), sample_size), latents)


def test_a_longer_grid_keeps_the_positions_of_the_shorter_one():
    def positions(*grid_size):
        return sinusoidal_positions(grid_size, (6, 4), 12, 16, 1.0, torch.device("cpu")).unflatten(0, grid_size)

    torch.testing.assert_close(positions(9, 4)[:6], positions(6, 4))
    torch.testing.assert_close(positions(3, 2), positions(6, 4)[:3, :2])


def test_learned_positions_are_stretched_along_time():
    ramp = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 3).flatten(1, 2)
    assert resample_positions(ramp, (4, 2), (4, 2)) is ramp
    stretched = resample_positions(ramp, (4, 2), (8, 2)).unflatten(1, (8, 2))
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(stretched[0, :, 1, 2], expected)


def test_frame_quality_interpolates_between_levels_and_resamples():
    embed = FrameQualityEmbedding(8)
    table = embed.embedding.weight
    torch.testing.assert_close(embed(torch.tensor([[2.25]]), 3), (0.75 * table[2] + 0.25 * table[3]).expand(1, 3, -1))
    # Half of the column is unknown, half of it level 4: not level 2.
    torch.testing.assert_close(embed(torch.tensor([[0.0, 4.0]]), 1)[0, 0], (table[0] + table[4]) / 2)
    torch.testing.assert_close(embed(torch.tensor([[1.0, 1.0, 5.0, 5.0]]), 2)[0], table[[1, 5]])


def test_mean_of_real_tokens():
    states = torch.tensor([[[1.0], [3.0], [100.0]], [[1.0], [2.0], [6.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert masked_mean(states, mask).tolist() == [[2.0], [3.0]]
    assert masked_mean(states[1:], None).tolist() == [[3.0]]
