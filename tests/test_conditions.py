"""What the network is told, put together and handed over: nothing is lost, padded texts count as padded."""

import dataclasses

import pytest
import torch

from qamdt.conditions import CURVES, LEVELS, Conditions
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.music import NUM_MUSIC_FEATURES


def build(batch_size=2, num_tokens=3, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Conditions(
        texts=torch.randn(batch_size, num_tokens, 6, generator=generator),
        mask=torch.rand(batch_size, num_tokens, generator=generator) < 0.8,
        levels={name: torch.randint(6, (batch_size,), generator=generator) for name in LEVELS},
        curves={
            "quality": 5 * torch.rand(batch_size, 8, generator=generator),
            "music": torch.rand(batch_size, 8, NUM_MUSIC_FEATURES, generator=generator),
        },
    )


def test_parts_lie_behind_one_another_with_their_texts_padded():
    short, long = build(1, 2), build(2, 5, seed=1)
    both = Conditions.cat([short, long])
    assert len(both) == 3
    assert torch.equal(both.texts[:1, :2], short.texts)
    assert torch.equal(both.texts[1:], long.texts)
    assert both.texts[:1, 2:].abs().max() == 0
    assert torch.equal(both.mask[:1, :2], short.mask)
    assert not both.mask[:1, 2:].any()
    assert torch.equal(both.levels["clip"], torch.cat([short.levels["clip"], long.levels["clip"]]))
    assert torch.equal(both.curves["quality"], torch.cat([short.curves["quality"], long.curves["quality"]]))


def test_repeated_clips_lie_in_a_row():
    once, thrice = build(), build().repeat(3)
    for before, after in zip(tensors(once), tensors(thrice), strict=True):
        assert torch.equal(after[:3], before[:1].expand_as(after[:3]))
        assert torch.equal(after[3:], before[1:].expand_as(after[3:]))


def test_half_precision_is_for_texts_alone():
    before, after = build(), build().to(dtype=torch.bfloat16)
    assert after.texts.dtype == torch.bfloat16
    assert torch.equal(after.curves["quality"], before.curves["quality"])
    assert torch.equal(after.mask, before.mask)
    assert all(tensor.device.type == "meta" for tensor in tensors(build().to(torch.device("meta"))))


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("option", [option for known in (LEVELS, CURVES) for _, option in known.values()])
def test_a_model_is_told_what_it_knows_and_nothing_else(option, is_known):
    options = {other: _option(other, not is_known) for known in (LEVELS, CURVES) for _, other in known.values()}
    model = QAMDTTransformer2DModel(
        sample_size=(8, 4),
        patch_size=(2, 4),
        in_channels=2,
        num_layers=1,
        num_decoder_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
        cross_attention_dim=6,
        **options | {option: _option(option, is_known)},
    )
    told = build().for_model(model.config)
    (argument,) = [argument for known in (LEVELS, CURVES) for argument, name in known.values() if name == option]
    assert (argument in told) == is_known
    model(torch.zeros(2, 2, 8, 4), torch.zeros(2), **told)  # which refuses what it does not know


def test_conditions_that_do_not_fit_together_are_refused():
    whole = build()
    with pytest.raises(ValueError, match=r"`curves` must be among \['music', 'quality'\], got \['loudness'\]"):
        dataclasses.replace(whole, curves={"loudness": torch.zeros(2, 8)})
    with pytest.raises(ValueError, match="`levels` must be among"):
        dataclasses.replace(whole, levels={"song": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"`mask` must have the shape \(2, 3\) of `texts`"):
        dataclasses.replace(whole, mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="and `levels` and `curves` its batch"):
        dataclasses.replace(whole, levels={"clip": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"`levels` must have the same names in all parts, got \[\['clip'"):
        Conditions.cat([whole, dataclasses.replace(whole, levels={})])


def _option(name, is_known):
    """The value of a model's option: a number of features, or yes and no."""
    return NUM_MUSIC_FEATURES * is_known if name.startswith("num_") else is_known


def tensors(told):
    return [told.texts, told.mask, *told.levels.values(), *told.curves.values()]
