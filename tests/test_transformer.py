"""Properties of the transformer: what each input can reach, any size, any batch, and what diffusers expects of it."""

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.training_utils import EMAModel
from peft import LoraConfig

from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel


CONFIG = {
    "sample_size": (8, 4),
    "patch_size": (2, 2),
    "in_channels": 3,
    "num_layers": 6,
    "num_decoder_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 12,
    "use_frame_quality": True,
    "use_global_quality": True,
    "pool_text": True,
}


def build(**changes):
    """A tiny network with every way for a condition to have an effect, even those that start without one."""
    torch.manual_seed(0)
    model = QAMDTTransformer2DModel(**CONFIG | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model():
    return build()


def inputs(batch_size=2, frames=8, bins=4, **changes):
    generator = torch.Generator().manual_seed(1)
    values = {
        "hidden_states": torch.randn(batch_size, 3, frames, bins, generator=generator),
        "timestep": torch.randint(0, 1000, (batch_size,), generator=generator),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12, generator=generator),
        "encoder_attention_mask": torch.arange(5) < torch.randint(1, 6, (batch_size, 1), generator=generator),
        "quality_level": torch.randint(0, 6, (batch_size,), generator=generator),
        "frame_quality": 5 * torch.rand(batch_size, 4, generator=generator),
        "global_quality": torch.randint(0, 6, (batch_size,), generator=generator),
    }
    return values | changes


@torch.no_grad()
def predict(model, values):
    return model(**values).sample


def test_batch_equals_single_clips(model):
    values = inputs(batch_size=3, keep_ids=torch.tensor([[0, 3], [6, 1], [7, 2]]))
    together = predict(model, values)
    for i in range(3):
        alone = predict(model, {name: value[i : i + 1] for name, value in values.items()})
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_padded_text_has_no_effect(model):
    values = inputs(encoder_attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))
    noisy = values["encoder_hidden_states"].clone()
    noisy[0, 3:] = 100.0
    torch.testing.assert_close(predict(model, values | {"encoder_hidden_states": noisy}), predict(model, values))

    single = {name: value[:1] for name, value in values.items()}
    shorter = single | {
        "encoder_hidden_states": single["encoder_hidden_states"][:, :3],
        "encoder_attention_mask": None,
    }
    torch.testing.assert_close(predict(model, single), predict(model, shorter))


def test_real_text_has_an_effect(model):
    values = inputs()
    other = values | {"encoder_hidden_states": values["encoder_hidden_states"].flip(-1)}
    assert not torch.allclose(predict(model, values), predict(model, other))
    without_pool = build(pool_text=False)
    assert not torch.allclose(predict(without_pool, values), predict(without_pool, other))


@pytest.mark.parametrize("name", ["quality_level", "global_quality"])
def test_unknown_quality_is_level_zero_and_levels_differ(model, name):
    unknown = predict(model, inputs(**{name: None}))
    samples = [predict(model, inputs(**{name: torch.full((2,), level)})) for level in range(6)]
    torch.testing.assert_close(unknown, samples[0])
    distances = torch.stack([(a - b).abs().max() for i, a in enumerate(samples) for b in samples[:i]])
    assert distances.min() > 1e-4


def test_frame_quality_reaches_the_patches_of_its_column_only(model):
    values = inputs(frame_quality=torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2))
    changed = torch.tensor([[1.0, 5.0, 3.0, 4.0]] * 2)
    tokens = model._embed_patches(values["hidden_states"], (4, 2), values["frame_quality"], None)
    difference = model._embed_patches(values["hidden_states"], (4, 2), changed, None) - tokens
    difference = difference.unflatten(1, (4, 2))  # (B, time, frequency, D)
    table = model.frame_quality_embed.embedding.weight
    assert difference[:, [0, 2, 3]].abs().max() == 0
    torch.testing.assert_close(difference[:, 1], (table[5] - table[2]).expand(2, 2, -1))


def test_no_frame_quality_is_unknown_quality(model):
    unknown = predict(model, inputs(frame_quality=None))
    torch.testing.assert_close(unknown, predict(model, inputs(frame_quality=torch.zeros(2, 7))))


def test_new_conditions_start_without_effect():
    torch.manual_seed(0)
    model = QAMDTTransformer2DModel(**CONFIG).eval()
    torch.nn.init.normal_(model.proj_out.weight)
    plain = QAMDTTransformer2DModel(
        **CONFIG | {"use_frame_quality": False, "use_global_quality": False, "pool_text": False}
    ).eval()
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    values = inputs()
    without = {name: value for name, value in values.items() if name not in ("frame_quality", "global_quality")}
    torch.testing.assert_close(predict(model, values), predict(plain, without))


def test_fresh_network_predicts_zero():
    assert predict(QAMDTTransformer2DModel(**CONFIG), inputs()).abs().max() == 0


def test_hidden_patches_reach_the_output_through_the_decoder_input_only(model):
    keep_ids = torch.tensor([[5, 0, 2], [7, 1, 3]])
    tokens = []
    model.patch_embed.register_forward_hook(lambda module, args, output: tokens.append(output))

    def has_gradient():
        sample = model(**inputs(keep_ids=keep_ids)).sample
        (gradient,) = torch.autograd.grad(sample.square().sum(), tokens[-1])
        return gradient.abs().sum(-1) > 0  # (B, N)

    assert has_gradient().all()
    with torch.no_grad():  # cut what the decoder sees of the input
        for block in model.transformer_blocks[-2:]:
            block.skip_linear.weight[:, 16:] = 0
    assert torch.equal(has_gradient(), torch.zeros(2, 8, dtype=torch.bool).scatter(1, keep_ids, True))


def test_side_interpolator_runs_under_masking_only(model):
    calls = []
    model.side_interpolator.register_forward_hook(lambda *args: calls.append(1))
    for training in (True, False):
        model.train(training)
        predict(model, inputs())
        assert not calls
        predict(model, inputs(keep_ids=torch.tensor([[0], [1]])))
        assert calls.pop()


@pytest.mark.parametrize("fused", [False, True])
def test_a_block_can_give_its_first_tokens_alone(model, fused):
    block = model.side_interpolator
    values = (torch.randn(2, 7, 16), torch.randn(2, 6, 16), torch.randn(2, 5, 16))
    expected = block(*values)[:, :3]
    if fused:
        model.fuse_qkv_projections()
    torch.testing.assert_close(block(*values, num_queries=3), expected)


def test_side_interpolator_computes_nothing_for_visible_patches(model):
    num_queries = []
    model.side_interpolator.ff.register_forward_hook(lambda module, args, output: num_queries.append(output.shape[1]))
    predict(model, inputs(keep_ids=torch.tensor([[0, 4, 6], [1, 5, 7]])))
    assert num_queries == [1 + 8 - 3]  # the quality token and the hidden patches


def test_masked_pass_is_the_same_in_training_and_evaluation(model):
    values = inputs(keep_ids=torch.tensor([[0, 4, 6], [1, 5, 7]]))
    torch.testing.assert_close(predict(model.train(), values), predict(model.eval(), values))


def test_order_of_kept_patches_does_not_matter(model):
    first = predict(model, inputs(keep_ids=torch.tensor([[0, 4, 6], [1, 5, 7]])))
    second = predict(model, inputs(keep_ids=torch.tensor([[6, 0, 4], [5, 7, 1]])))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("frames", "bins"), [(8, 4), (7, 3), (1, 1), (2, 4), (31, 5)])
@pytest.mark.parametrize("overlap", [(0, 0), (1, 1)])
def test_any_size_goes_in_and_comes_out(frames, bins, overlap):
    model = build(patch_overlap=overlap)
    values = inputs(frames=frames, bins=bins)
    assert predict(model, values).shape == (2, 3, frames, bins)
    assert predict(model, values | {"keep_ids": torch.tensor([[0], [0]])}).shape == (2, 3, frames, bins)


def test_network_without_quality_token():
    model = build(use_quality_token=False)
    values = inputs(quality_level=None)
    assert predict(model, values).shape == (2, 3, 8, 4)
    assert predict(model, values | {"keep_ids": torch.tensor([[0, 3], [6, 1]])}).shape == (2, 3, 8, 4)


def test_bfloat16_is_close_and_tells_timesteps_apart(model):
    values = inputs()
    exact = predict(model, values)
    model.to(torch.bfloat16)
    low = {name: v.bfloat16() if name.endswith("hidden_states") else v for name, v in values.items()}
    assert (predict(model, low).float() - exact).norm() < 0.05 * exact.norm()
    late = [predict(model, low | {"timestep": torch.full((2,), t)}) for t in (999, 1000)]
    assert not torch.equal(*late)


def test_autocast_is_close(model):
    values = inputs(keep_ids=torch.tensor([[0, 3], [6, 1]]))
    exact = predict(model, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (predict(model, values).float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("keep_ids", [None, torch.tensor([[0, 3], [6, 1]])], ids=["full", "masked"])
def test_gradient_checkpointing_gives_the_same_gradients(model, keep_ids):
    def gradients():
        model.zero_grad()
        model.train()(**inputs(keep_ids=keep_ids)).sample.square().mean().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    expected = gradients()
    model.enable_gradient_checkpointing()
    checkpointed = gradients()
    assert checkpointed.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = QAMDTTransformer2DModel.from_pretrained(tmp_path)
    torch.testing.assert_close(predict(loaded, inputs()), predict(model, inputs()), atol=0, rtol=0)
    assert loaded.config.num_layers == CONFIG["num_layers"]
    assert tuple(loaded.config.sample_size) == CONFIG["sample_size"]


def test_save_in_shards_as_variant_and_load_in_another_dtype(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB", variant="fp32")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = QAMDTTransformer2DModel.from_pretrained(tmp_path, variant="fp32", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.mask_token, model.mask_token.bfloat16())


def test_tuple_output_is_the_same(model):
    (sample,) = model(**inputs(), return_dict=False)
    torch.testing.assert_close(sample, predict(model, inputs()))


def test_moving_average_is_saved_and_loaded(model, tmp_path):
    ema = EMAModel(model.parameters(), model_cls=QAMDTTransformer2DModel, model_config=model.config)
    ema.step(model.parameters())
    ema.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, QAMDTTransformer2DModel)
    for saved, restored in zip(ema.shadow_params, loaded.shadow_params, strict=True):
        assert torch.equal(saved, restored)


def test_weights_can_be_stored_in_eight_bits(model):
    exact = predict(model, inputs())
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert model.quality_embed.weight.dtype == torch.float32
    assert (predict(model, inputs()) - exact).norm() < 0.2 * exact.norm()


def test_lora_is_added_saved_and_loaded(model, tmp_path):
    values = inputs()
    plain = predict(model, values)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out"], init_lora_weights=False))
    adapted = predict(model, values)
    assert not torch.allclose(plain, adapted)
    model.save_lora_adapter(tmp_path, weight_name="lora.safetensors")

    fresh = build()
    fresh.load_lora_adapter(tmp_path, prefix=None, weight_name="lora.safetensors")
    torch.testing.assert_close(predict(fresh, values), adapted)
    fresh.disable_adapters()
    torch.testing.assert_close(predict(fresh, values), plain)


def test_fused_projections_compute_the_same(model):
    expected = predict(model, inputs())
    model.fuse_qkv_projections()
    torch.testing.assert_close(predict(model, inputs()), expected, atol=1e-5, rtol=1e-5)
    model.unfuse_qkv_projections()
    torch.testing.assert_close(predict(model, inputs()), expected)


def test_attention_backend_can_be_chosen(model):
    expected = predict(model, inputs())
    model.set_attention_backend("_native_math")
    torch.testing.assert_close(predict(model, inputs()), expected, atol=1e-5, rtol=1e-5)


def count_calls(modules):
    calls = []
    for module in modules:
        module.register_forward_hook(lambda *args: calls.append(1))
    return calls


def test_block_caches_leave_blocks_out_and_keep_the_result():
    """With the very same input twice, a step from the cache must equal the full step: nothing is added twice."""
    for config in (
        FirstBlockCacheConfig(threshold=0.1),
        MagCacheConfig(threshold=0.5, num_inference_steps=4, retention_ratio=0.0, mag_ratios=[1.0] * 4),
    ):
        model = build()
        expected = predict(model, inputs())
        calls = count_calls([model.transformer_blocks[3].attn])
        model.enable_cache(config)
        with model.cache_context("cond"):
            samples = [predict(model, inputs()) for _ in range(3)]
        assert len(calls) < 3
        for sample in samples:
            torch.testing.assert_close(sample, expected, atol=1e-5, rtol=1e-5)
        model.disable_cache()
        torch.testing.assert_close(predict(model, inputs()), expected)


@pytest.mark.parametrize("name", ["taylorseer", "pyramid", "faster"])
def test_attention_caches_leave_attention_out_and_keep_the_result(model, name):
    timesteps = [999]
    configs = {
        "taylorseer": TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
        "pyramid": PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            cross_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(100, 900),
            cross_attention_timestep_skip_range=(100, 900),
            current_timestep_callback=lambda: timesteps[-1],
        ),
        "faster": FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(100, 900),
            spatial_attention_block_identifiers=("transformer_blocks.*[.]attn",),
            attention_weight_callback=lambda module: 0.5,
            current_timestep_callback=lambda: timesteps[-1],
            tensor_format="BCHW",
            is_guidance_distilled=True,
        ),
    }
    expected = predict(model, inputs())
    calls = count_calls([model.transformer_blocks[3].attn.to_q])
    model.enable_cache(configs[name])
    with model.cache_context("cond"):
        for timestep in (999, 950, 800, 700, 600, 500):
            timesteps.append(timestep)
            torch.testing.assert_close(predict(model, inputs()), expected, atol=0.05, rtol=0.05)
    assert len(calls) < 6
    model.disable_cache()
    torch.testing.assert_close(predict(model, inputs()), expected)


@pytest.mark.parametrize("keep_ids", [None, torch.tensor([[0, 3], [6, 1]])], ids=["full", "masked"])
def test_compiles_without_graph_breaks(model, keep_ids):
    torch.compiler.reset()
    values = inputs(keep_ids=keep_ids)
    expected = predict(model, values)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(predict(compiled, values), expected)


def test_blocks_compile_one_by_one(model):
    torch.compiler.reset()
    expected = predict(model, inputs())
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(predict(model, inputs()), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_states": torch.zeros(2, 4, 8, 4)}, r"`hidden_states` must have shape \(batch, 3"),
        ({"timestep": torch.tensor(5)}, r"`timestep` must have shape \(2,\), got \(\)"),
        ({"quality_level": torch.zeros(3, dtype=torch.long)}, "`quality_level` must have 1 axes"),
        ({"frame_quality": torch.zeros(2)}, "`frame_quality` must have 2 axes"),
        ({"keep_ids": torch.zeros(2, dtype=torch.long)}, r"`keep_ids` must have shape \(2, kept\)"),
    ],
)
def test_wrong_shapes_are_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        model(**inputs(**changes))


def test_quality_for_a_network_that_does_not_know_it_is_refused():
    model = build(use_frame_quality=False)
    with pytest.raises(ValueError, match="`frame_quality` was given to a model with `use_frame_quality=False`"):
        model(**inputs())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 7}, "even number of encoder blocks"),
        ({"num_layers": 10**9 + 1}, "`num_layers` must be at most 1000"),
        ({"interpolation_scale": 0.0}, "`interpolation_scale` above 0"),
        ({"num_decoder_layers": 0}, "`num_decoder_layers` must be at least 1"),
        ({"patch_overlap": (2, 0)}, "`patch_overlap` must be"),
        ({"num_attention_heads": 1, "attention_head_dim": 6}, "multiple of 4"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        QAMDTTransformer2DModel(**CONFIG | changes)
