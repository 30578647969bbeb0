import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from whisq.modeling_whisq import PRESETS, WhisQModel
from whisq.training.config import LossConfig, load_config
from whisq.training.loss import whisq_loss


AUDIO_SIZE, TEXT_SIZE = 16, 12
NUM_AUDIO, NUM_TEXT = (40, 23, 9), (3, 7, 1)
VARIANTS = {
    "default": {},
    "vanilla": {"coattention_type": "vanilla"},
    "cross": {"coattention_type": "cross"},
    "paper": {key: value for key, value in PRESETS["paper"].items() if not key.endswith(("_size", "_encoder"))},
}


def make_model(**changes):
    torch.manual_seed(0)
    model = WhisQModel(audio_hidden_size=AUDIO_SIZE, text_hidden_size=TEXT_SIZE, head_hidden_sizes=(8,), **changes)
    return model.eval()


def make_tokens():
    """Three clips with prompts, padded with what must not be read."""
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(3, max(NUM_AUDIO), AUDIO_SIZE, generator=generator)
    text = torch.randn(3, max(NUM_TEXT), TEXT_SIZE, generator=generator)
    audio_mask = torch.arange(max(NUM_AUDIO)) < torch.tensor(NUM_AUDIO)[:, None]
    text_mask = torch.arange(max(NUM_TEXT)) < torch.tensor(NUM_TEXT)[:, None]
    audio = audio.masked_fill(~audio_mask[:, :, None], torch.nan)
    return audio, audio_mask, text.masked_fill(~text_mask[:, :, None], torch.nan), text_mask


def scores_of(output):
    return torch.stack([output.overall_quality, output.text_alignment])


def test_the_papers_preset_has_the_papers_map():
    with torch.device("meta"):
        model = WhisQModel(**PRESETS["paper"])
    num_parameters = {
        name: sum(parameter.numel() for parameter in module.parameters()) for name, module in model.named_children()
    }
    assert num_parameters == {
        "text_projection": 524_800,
        "coattention": 2 * 1_050_624,
        "quality_head": 147_841,
        "alignment_head": 278_913,
    }
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 3_052_802


def test_the_papers_config_file_builds_the_papers_preset():
    config = load_config("paper")
    sizes = {key: PRESETS["paper"][key] for key in ("audio_hidden_size", "text_hidden_size")}
    encoders = {"audio_encoder": config.encoders.audio, "text_encoder": config.encoders.text}
    assert {**config.model, **sizes, **encoders} == PRESETS["paper"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_gives_what_its_clips_give_alone_and_padding_is_not_read(variant):
    model = make_model(**VARIANTS[variant])
    audio, audio_mask, text, text_mask = make_tokens()
    scores = scores_of(model(audio, audio_mask, text, text_mask))
    assert scores.isfinite().all()
    assert scores[0].std() > 0
    assert scores[1].std() > 0
    for clip in range(3):
        t, l = NUM_AUDIO[clip], NUM_TEXT[clip]
        masks = audio_mask[clip, None, :t], text_mask[clip, None, :l]
        alone = scores_of(model(audio[clip, None, :t], masks[0], text[clip, None, :l], masks[1]))
        torch.testing.assert_close(alone[:, 0], scores[:, clip], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_alignment_depends_on_the_text_and_quality_does_not(variant):
    model = make_model(**VARIANTS[variant])
    audio, audio_mask, text, text_mask = make_tokens()
    output = model(audio, audio_mask, text, text_mask)
    swapped = model(audio, audio_mask, text.roll(1, 0), text_mask.roll(1, 0))
    alone = model(audio, audio_mask)
    assert alone.text_alignment is None
    torch.testing.assert_close(alone.overall_quality, output.overall_quality, rtol=0, atol=0)
    torch.testing.assert_close(swapped.overall_quality, output.overall_quality, rtol=0, atol=0)
    assert ((swapped.text_alignment - output.text_alignment).abs() > 1e-6).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_trained_by_the_two_scores(variant):
    model = make_model(**VARIANTS[variant]).train()
    scores_of(model(*make_tokens())).sum().backward()
    untrained = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}
    # A softmax does not see what is added to all of its inputs, so the bias of the keys never has a gradient.
    assert all(name.endswith("to_k.bias") for name in untrained)


@pytest.mark.parametrize("variant", ["default", "paper"])
def test_a_frame_scores_what_its_window_alone_would(variant):
    model = make_model(**VARIANTS[variant])
    audio, audio_mask, _, _ = make_tokens()
    window, hop = 13, 5
    scores, is_real = model.score_frames(audio, audio_mask, window=window, hop=hop)
    assert scores.shape == is_real.shape == (3, 8)
    assert is_real.sum(dim=1).tolist() == [math.ceil(length / hop) for length in NUM_AUDIO]
    tokens = torch.arange(max(NUM_AUDIO))
    for frame in range(8):
        first = frame * hop - (window - hop) // 2
        in_window = (tokens >= first) & (tokens < first + window) & audio_mask
        clips = is_real[:, frame]
        expected = model(audio[clips], in_window[clips]).overall_quality
        torch.testing.assert_close(scores[clips, frame], expected, rtol=0, atol=1e-5)


def test_frames_of_a_clip_do_not_depend_on_padding():
    model = make_model()
    audio, audio_mask, _, _ = make_tokens()
    scores, is_real = model.score_frames(audio, audio_mask, window=8, hop=4)
    alone, _ = model.score_frames(audio[1:2, :23], audio_mask[1:2, :23], window=8, hop=4)
    torch.testing.assert_close(scores[1][is_real[1]], alone[0], rtol=0, atol=1e-5)


def test_frames_further_apart_than_their_windows_are_refused():
    audio, audio_mask, _, _ = make_tokens()
    with pytest.raises(ValueError, match="`hop` must be at least 1 and at most `window`"):
        make_model().score_frames(audio, audio_mask, window=4, hop=5)


@pytest.mark.parametrize("is_bounded", [True, False])
def test_scores_stay_on_the_scale(is_bounded):
    model = make_model(is_bounded=is_bounded)
    for head in (model.quality_head, model.alignment_head):
        nn.init.normal_(head[-1].weight, std=100.0)
    scores = scores_of(model(*make_tokens()))
    assert (scores >= 1).all()
    assert (scores <= 5).all()
    assert ((scores < 1.5) | (scores > 4.5)).any()


def test_unbounded_scores_keep_their_gradient_beyond_the_scale_in_training():
    model = make_model(is_bounded=False, dropout=0.0).train()
    nn.init.constant_(model.quality_head[-1].bias, 10.0)
    output = model(*make_tokens())
    assert (output.overall_quality > 5).all()
    output.overall_quality.sum().backward()
    assert model.quality_head[-1].bias.grad == 3


def test_a_checkpoint_holds_the_heads_and_the_names_of_the_encoders(tmp_path):
    model = make_model(audio_encoder="openai/whisper-base@abc", text_encoder="Qwen/Qwen3-0.6B@def")
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = WhisQModel.from_pretrained(tmp_path)
    assert loaded.config.audio_encoder == "openai/whisper-base@abc"
    assert loaded.config.text_encoder == "Qwen/Qwen3-0.6B@def"
    torch.testing.assert_close(scores_of(loaded(*make_tokens())), scores_of(model(*make_tokens())), rtol=0, atol=0)


def test_cached_half_precision_tokens_are_read():
    model = make_model()
    audio, audio_mask, text, text_mask = make_tokens()
    halves = model(audio.half(), audio_mask, text.half(), text_mask)
    expected = scores_of(model(audio, audio_mask, text, text_mask))
    torch.testing.assert_close(scores_of(halves), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_hidden_states": torch.zeros(3, 40, 5)}, "`audio_hidden_states` must have shape"),
        ({"text_hidden_states": torch.zeros(3, 7, 5)}, "`text_hidden_states` must have shape"),
        ({"audio_mask": torch.ones(3, 40)}, "`audio_mask` must be boolean"),
        ({"audio_mask": torch.ones(3, 39, dtype=torch.bool)}, "`audio_mask` must be boolean"),
        ({"text_mask": None}, "`text_mask` must be boolean .* got none"),
        ({"text_mask": torch.zeros(3, 7, dtype=torch.bool)}, "at least one real token"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(change, message):
    names = ("audio_hidden_states", "audio_mask", "text_hidden_states", "text_mask")
    arguments = dict(zip(names, make_tokens(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        make_model()(**arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"coattention_type": "parallel"}, '`coattention_type` must be "sequence", "vanilla" or "cross"'),
        ({"quality_pool": "max"}, '`quality_pool` must be "mean" or "mean_std"'),
        ({"num_attention_heads": 3}, "`num_attention_heads` must divide `audio_hidden_size`"),
    ],
)
def test_unknown_variants_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_model(**wrong)


# The loss.


def compute_loss(model, config, overall_quality=None, text_alignment=None, is_aligned=None):
    audio, audio_mask, text, text_mask = make_tokens()
    output = model(audio, audio_mask, text, text_mask)
    overall_quality = torch.tensor([2.0, 3.0, 4.0]) if overall_quality is None else overall_quality
    text_alignment = torch.tensor([5.0, 1.0, 3.0]) if text_alignment is None else text_alignment
    return output, whisq_loss(output, overall_quality, text_alignment, audio_mask, text_mask, config, is_aligned)


@pytest.mark.parametrize("alignment", ["sinkhorn", "gromov_wasserstein", "contrastive"])
def test_alignment_trains_the_text_projection_and_nothing_else(alignment):
    """The audio is frozen, so transport can only move the text; quality does not know of either."""
    model = make_model()
    config = LossConfig(alignment=alignment, alignment_weight=1.0)
    unknown = torch.full((3,), torch.nan)
    is_aligned = torch.ones(3, dtype=torch.bool)
    _, losses = compute_loss(model, config, unknown, unknown, is_aligned)
    assert losses.overall_quality == losses.text_alignment == 0
    losses.loss.backward()
    trained = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert "text_projection.weight" in trained
    assert {name.split(".")[0] for name in trained} == {"text_projection"}


def test_the_loss_is_the_mean_of_both_huber_losses_and_the_weighted_alignment():
    model = make_model()
    config = LossConfig(alignment="sinkhorn", alignment_weight=0.25)
    output, losses = compute_loss(model, config)
    quality = nn.functional.huber_loss(output.overall_quality, torch.tensor([2.0, 3.0, 4.0]))
    alignment = nn.functional.huber_loss(output.text_alignment, torch.tensor([5.0, 1.0, 3.0]))
    torch.testing.assert_close(losses.overall_quality, quality.detach())
    torch.testing.assert_close(losses.text_alignment, alignment.detach())
    torch.testing.assert_close(losses.loss, (quality + alignment) / 2 + 0.25 * losses.alignment)
    assert losses.alignment > 0
    _, without = compute_loss(model, replace(config, alignment="none"))
    torch.testing.assert_close(without.loss, (quality + alignment) / 2)


def test_clips_without_a_score_do_not_count():
    model = make_model()
    config = LossConfig(alignment="none")
    output, losses = compute_loss(model, config, torch.tensor([2.0, torch.nan, 4.0]), torch.full((3,), torch.nan))
    expected = nn.functional.huber_loss(output.overall_quality[[0, 2]], torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(losses.overall_quality, expected.detach())
    assert losses.text_alignment == 0
    losses.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_only_prompts_that_belong_to_their_music_are_pulled_towards_it():
    model = make_model()
    config = LossConfig(alignment="sinkhorn", alignment_weight=1.0)
    apart = [compute_loss(model, config, is_aligned=mask)[1].alignment for mask in torch.eye(3, dtype=torch.bool)]
    _, pair = compute_loss(model, config, is_aligned=torch.tensor([True, False, True]))
    torch.testing.assert_close(pair.alignment, (apart[0] + apart[2]) / 2)
    assert compute_loss(model, config, is_aligned=torch.zeros(3, dtype=torch.bool))[1].alignment == 0
