"""The network that a run starts with: what is added to an older one has no effect until it is trained."""

import pytest
import torch

from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.music import NUM_MUSIC_FEATURES
from qamdt.settings import build
from qamdt.training.config import TrainConfig
from qamdt.training.network import build_model
from tests.tiny_training import MODEL


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    model = QAMDTTransformer2DModel(**MODEL)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def grow(source, tmp_path, **changes):
    run = {"init_from": str(source), "output_dir": str(tmp_path), "max_steps": 1}
    return build_model(build(TrainConfig, {"run": run, "model": {**MODEL, **changes}}))


def test_a_grown_network_starts_as_it_was_and_can_learn(source, tmp_path):
    # Memory full of NaN: weights that nobody initialises would show.
    heap = [torch.full((NUM_MUSIC_FEATURES * 64 * count,), float("nan")) for count in range(1, 40)]
    del heap
    before = QAMDTTransformer2DModel.from_pretrained(source)
    grown = grow(source, tmp_path, num_music_features=NUM_MUSIC_FEATURES)
    channels, (frames, bins) = MODEL["in_channels"], MODEL["sample_size"]
    inputs = {
        "hidden_states": torch.randn(2, channels, frames, bins),
        "timestep": torch.tensor([10, 500]),
        "encoder_hidden_states": torch.randn(2, 3, MODEL["cross_attention_dim"]),
        "return_dict": False,
    }
    music = torch.randn(2, frames, NUM_MUSIC_FEATURES)
    torch.testing.assert_close(grown(**inputs, music=music)[0], before(**inputs)[0], atol=0, rtol=0)
    assert all(weight.isfinite().all() for weight in grown.parameters())
    first, last = grown.music_embed.linear_1.weight, grown.music_embed.linear_2.weight
    assert first.std() > 0.01
    assert not last.any()
    grown(**inputs, music=music)[0].square().mean().backward()
    assert last.grad.any()


def test_what_contradicts_the_source_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match="which `model` contradicts"):
        grow(source, tmp_path, mlp_ratio=2.0)


def test_a_network_that_knows_music_is_not_made_to_forget(source, tmp_path):
    grown = grow(source, tmp_path, num_music_features=NUM_MUSIC_FEATURES)
    grown.save_pretrained(tmp_path / "grown")
    with pytest.raises(ValueError, match="num_music_features"):
        grow(tmp_path / "grown", tmp_path, num_music_features=0)


def test_for_latents_of_another_shape_only_what_touches_them_starts_anew(source, tmp_path):
    before = QAMDTTransformer2DModel.from_pretrained(source)
    frames, bins = MODEL["sample_size"]
    patch_frames, patch_bins = MODEL["patch_size"]
    shape = {"in_channels": 3, "sample_size": [frames // patch_frames, bins // patch_bins], "patch_size": [1, 1]}
    moved = grow(source, tmp_path, **shape)
    latents = torch.randn(1, 3, *shape["sample_size"])
    states = torch.randn(1, 3, MODEL["cross_attention_dim"])
    assert not moved(latents, torch.tensor([10]), states, return_dict=False)[0].any()  # an output without effect
    kept = {
        name
        for name, weight in before.state_dict().items()
        if weight.shape == moved.state_dict()[name].shape and torch.equal(weight, moved.state_dict()[name])
    }
    anew = set(before.state_dict()) - kept
    assert anew == {"patch_embed.proj.weight", "patch_embed.proj.bias", "proj_out.weight", "proj_out.bias"}
