"""Conversion of published weights: every tensor accounted for, and a whole (tiny) checkpoint to a folder and back."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.published.convert import (
    PUBLISHED_UNET_PARAMS,
    convert_checkpoint,
    convert_transformer_state_dict,
    convert_vae_state_dict,
    read_unet_params,
    transformer_config_from_original,
)
from qamdt.published.convert_decoders import convert_vocoder_state_dict, vae_config_from_original


GOLDEN = Path(__file__).parent / "golden"
TINY_PARAMS = {
    "input_size": [16, 8],
    "patch_size": [4, 1],
    "overlap": [0, 0],
    "in_channels": 8,
    "hidden_size": 64,
    "depth": 8,
    "num_heads": 4,
    "cond_dim": 32,
    "decode_layer": 4,
    "mask_ratio": 0.3,
    "pred_sigma": True,
}


def meta_tensors(file_name):
    shapes = json.loads((GOLDEN / file_name).read_text())
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(state_dict):
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


@pytest.fixture(scope="module")
def golden_weights():
    return load_file(GOLDEN / "tiny_p4x1.safetensors")


def ema_name(name):
    return "model_ema.diffusion_model" + name.replace(".", "")


# The transformer.


def test_all_published_names_and_shapes_of_the_transformer():
    published = meta_tensors("real_state_dict_shapes.json")
    assert len(published) == 488
    with torch.device("meta"):
        model = QAMDTTransformer2DModel(**transformer_config_from_original(PUBLISHED_UNET_PARAMS))
    converted = convert_transformer_state_dict(published)
    assert shapes_of(converted) == shapes_of(model.state_dict())
    model.load_state_dict(converted, assign=True)


def test_the_default_network_is_the_published_one():
    published = transformer_config_from_original(PUBLISHED_UNET_PARAMS)
    with torch.device("meta"):
        default = dict(QAMDTTransformer2DModel().config)
    assert {name: default[name] for name in published} == published


@pytest.mark.parametrize("rename", ["model.diffusion_model.{}".format, "diffusion_model.{}".format, ema_name])
def test_names_of_a_whole_checkpoint_convert_alike(golden_weights, rename):
    expected = convert_transformer_state_dict(golden_weights)
    renamed = {rename(name): tensor for name, tensor in golden_weights.items()}
    if rename is ema_name:
        del renamed[ema_name("pos_embed")]
        renamed |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    converted = convert_transformer_state_dict(renamed)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_unknown_quality_is_a_new_row_of_zeros(golden_weights):
    table = convert_transformer_state_dict(golden_weights)["quality_embed.weight"]
    assert table[0].abs().max() == 0
    assert torch.equal(table[1:], golden_weights["mos_embed.weight"])


def test_missing_and_surplus_tensors_are_named(golden_weights):
    weights = dict(golden_weights)
    del weights["de_blocks.2.mlp.fc1.bias"]
    weights |= {"en_inblocks.0.skip_linear.weight": torch.zeros(1), "head": torch.zeros(1)}
    with pytest.raises(ValueError, match="transformer") as error:
        convert_transformer_state_dict(weights)
    assert "1 missing: de_blocks.2.mlp.fc1.bias" in str(error.value)
    assert "2 surplus: en_inblocks.0.skip_linear.weight, head" in str(error.value)

    shorter = {name: tensor for name, tensor in golden_weights.items() if not name.startswith("en_inblocks.1.")}
    with pytest.raises(ValueError, match="as many `en_inblocks` as `en_outblocks`, got 1 and 2"):
        convert_transformer_state_dict(shorter)
    with pytest.raises(ValueError, match="missing"):
        convert_transformer_state_dict({})


def test_unknown_parameters_are_refused_and_those_without_effect_are_not():
    with pytest.raises(ValueError, match=r"unknown parameters \['patchsize'\]"):
        transformer_config_from_original({"patchsize": [4, 1]})
    config = transformer_config_from_original(TINY_PARAMS)
    assert config == transformer_config_from_original(
        TINY_PARAMS | {"pred_sigma": False, "overlap_size": [0, 0], "use_rel_pos": True, "model_max_length": 77}
    )


def test_what_a_configuration_leaves_out_has_the_published_default():
    config = transformer_config_from_original({})
    assert config["patch_size"] == (16, 4)
    assert (config["num_layers"], config["num_decoder_layers"]) == (28, 4)


def test_configuration_file(tmp_path):
    path = tmp_path / "qa_mdt.yaml"
    path.write_text("model: {params: {unet_config: {target: X, params: {depth: 8, patch_size: [4, 1]}}}}")
    assert read_unet_params(path) == {"depth": 8, "patch_size": [4, 1]}
    path.write_text("model: {}")
    with pytest.raises(ValueError, match="`config_path` must be a published configuration"):
        read_unet_params(path)


# The autoencoder and the vocoder.


def test_all_published_names_and_shapes_of_the_autoencoder():
    published = meta_tensors("vae_state_dict_shapes.json")
    assert len(published) == 204
    config = vae_config_from_original(published)
    assert config["block_out_channels"] == (128, 256, 512)
    assert config["latent_channels"] == 8
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    converted = convert_vae_state_dict(published)
    assert shapes_of(converted) == shapes_of(vae.state_dict())
    vae.load_state_dict(converted, assign=True)


def test_autoencoder_in_a_whole_checkpoint():
    published = meta_tensors("vae_state_dict_shapes.json")
    whole = {f"first_stage_model.{name}": tensor for name, tensor in published.items()}
    whole |= {"first_stage_model.loss.logvar": torch.zeros(()), "first_stage_model.vocoder.x": torch.zeros(())}
    whole |= {"scale_factor": torch.zeros(())}
    assert convert_vae_state_dict(whole).keys() == convert_vae_state_dict(published).keys()


def test_missing_and_surplus_tensors_of_the_autoencoder_are_named():
    published = meta_tensors("vae_state_dict_shapes.json")
    del published["decoder.up.0.block.1.norm1.weight"]
    published["encoder.down.0.attn.0.q.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="autoencoder") as error:
        convert_vae_state_dict(published)
    assert "missing: decoder.up_blocks.2.resnets.1.norm1.weight" in str(error.value)
    assert "surplus: encoder.down.0.attn.0.q.weight" in str(error.value)
    with pytest.raises(ValueError, match="missing"):
        convert_vae_state_dict({})


def published_vae_weights():
    """A narrow autoencoder under the published names."""
    widths = {128: 32, 256: 64, 512: 96}
    shapes = json.loads((GOLDEN / "vae_state_dict_shapes.json").read_text())
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.05 * torch.randn([widths.get(size, size) for size in shape], generator=generator)
        for name, shape in shapes.items()
    }


def test_autoencoder_levels_and_attention_are_in_their_places():
    published = published_vae_weights()
    converted = convert_vae_state_dict(published)
    for ours, theirs in {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
        "decoder.up_blocks.0.resnets.2.conv2.bias": "decoder.up.2.block.2.conv2.bias",
        "decoder.up_blocks.1.upsamplers.0.conv.bias": "decoder.up.1.upsample.conv.bias",
        "decoder.mid_block.resnets.1.norm2.weight": "decoder.mid.block_2.norm2.weight",
        "encoder.mid_block.attentions.0.group_norm.bias": "encoder.mid.attn_1.norm.bias",
        "decoder.conv_norm_out.weight": "decoder.norm_out.weight",
    }.items():
        assert torch.equal(converted[ours], published[theirs])
    key = converted["encoder.mid_block.attentions.0.to_k.weight"]
    assert torch.equal(key, published["encoder.mid.attn_1.k.weight"][:, :, 0, 0])


def published_vocoder_weights(vocoder):
    """The weights of a vocoder under the published names, half of the layers with weight normalisation."""
    weights = {}
    for name, tensor in vocoder.state_dict().items():
        name = re.sub(r"^upsampler\.", "ups.", name)
        if name in ("mean", "scale"):
            continue
        if name.endswith(".weight") and ("ups." in name or "convs1" in name):
            magnitude = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))
            weights |= {f"{name}_g": magnitude, f"{name}_v": 3 * tensor}
        else:
            weights[name] = tensor
    return weights


@pytest.fixture(scope="module")
def tiny_vocoder():
    torch.manual_seed(0)
    config = SpeechT5HifiGanConfig(
        model_in_dim=32,
        upsample_initial_channel=32,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        normalize_before=False,
    )
    return SpeechT5HifiGan(config)


def test_vocoder_with_weight_normalisation(tiny_vocoder):
    published = published_vocoder_weights(tiny_vocoder)
    for weights in (published, {f"first_stage_model.vocoder.{name}": tensor for name, tensor in published.items()}):
        converted = convert_vocoder_state_dict(weights)
        assert converted.keys() == tiny_vocoder.state_dict().keys()
        for name, tensor in tiny_vocoder.state_dict().items():
            torch.testing.assert_close(converted[name], tensor)
    del published["ups.0.weight_g"]
    with pytest.raises(ValueError, match="1 missing: ups.0.weight_g"):
        convert_vocoder_state_dict(published)


# A whole checkpoint.


@pytest.fixture(scope="module")
def text_encoder_dir(tmp_path_factory):
    """A tokenizer of three words and no weights, as a folder."""
    path = tmp_path_factory.mktemp("flan-t5-tiny")
    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "piano": 2}, unk_token="piano"))
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tiny_text_encoder():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=3, d_model=32, d_kv=4, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


@pytest.fixture(scope="module")
def checkpoint(golden_weights, tiny_vocoder, tiny_text_encoder):
    """A Lightning checkpoint with all that the published one holds, in tiny; its network is noise but for the EMA."""
    state_dict = {
        **{f"model.diffusion_model.{name}": torch.randn_like(tensor) for name, tensor in golden_weights.items()},
        "model.diffusion_model.pos_embed": golden_weights["pos_embed"],
        **{ema_name(name): tensor for name, tensor in golden_weights.items() if name != "pos_embed"},
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7),
        **{f"first_stage_model.{name}": tensor for name, tensor in published_vae_weights().items()},
        "first_stage_model.loss.logvar": torch.zeros(()),
        **{f"first_stage_model.vocoder.{n}": tensor for n, tensor in published_vocoder_weights(tiny_vocoder).items()},
        **{f"cond_stage_models.0.model.{name}": tensor for name, tensor in tiny_text_encoder.state_dict().items()},
        "clap.model.logit_scale_a": torch.zeros(()),
        "scale_factor": torch.tensor(0.7),
        "logvar": torch.zeros(1000),
    }
    with np.load(GOLDEN / "ddim.npz") as arrays:
        state_dict["betas"] = torch.from_numpy(arrays["betas"]).float()
        state_dict["alphas_cumprod"] = torch.from_numpy(arrays["alphas_cumprod"])
    return {"state_dict": state_dict, "epoch": 3, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4)}}}]}


@pytest.fixture(scope="module")
def checkpoint_path(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_389999.ckpt"
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def converted_dir(checkpoint_path, text_encoder_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("converted") / "qamdt"
    return convert_checkpoint(checkpoint_path, output_dir, unet_params=TINY_PARAMS, text_encoder=text_encoder_dir)


def test_converted_transformer_computes_what_the_moving_average_does(converted_dir):
    transformer = QAMDTTransformer2DModel.from_pretrained(converted_dir / "transformer")
    with np.load(GOLDEN / "tiny_p4x1.npz") as arrays, torch.no_grad():
        x, t, context, mask, mos, expected = (
            torch.from_numpy(arrays[name]) for name in ("x", "t", "context", "context_mask", "mos", "out_eval")
        )
        sample = transformer(x, t, context, mask, quality_level=mos[:, 0]).sample
        torch.testing.assert_close(sample, expected, atol=1e-5, rtol=0)
        unknown, middle = (transformer(x, t, context, mask, quality_level=level).sample for level in (None, 0 * t + 3))
    torch.testing.assert_close(unknown, middle)


def test_converted_decoders(converted_dir, tiny_vocoder):
    vae = AutoencoderKL.from_pretrained(converted_dir / "vae")
    assert vae.config.scaling_factor == pytest.approx(0.7)
    assert torch.equal(vae.decoder.conv_in.weight, published_vae_weights()["decoder.conv_in.weight"])
    assert vae.encode(torch.zeros(1, 1, 16, 8)).latent_dist.mean.shape == (1, 8, 4, 2)

    vocoder = SpeechT5HifiGan.from_pretrained(converted_dir / "vocoder")
    assert vocoder.config.sampling_rate == 16_000
    mel_spectrogram = torch.randn(1, 3, 32)
    torch.testing.assert_close(vocoder(mel_spectrogram), tiny_vocoder(mel_spectrogram))


def test_converted_text_encoder(converted_dir, tiny_text_encoder):
    text_encoder = T5EncoderModel.from_pretrained(converted_dir / "text_encoder").eval()
    input_ids = torch.tensor([[2, 2, 1]])
    torch.testing.assert_close(text_encoder(input_ids)[0], tiny_text_encoder(input_ids)[0])


def test_converted_scheduler_has_the_published_schedule(converted_dir):
    scheduler = DDIMScheduler.from_pretrained(converted_dir / "scheduler")
    with np.load(GOLDEN / "ddim.npz") as arrays:
        torch.testing.assert_close(
            scheduler.alphas_cumprod, torch.from_numpy(arrays["alphas_cumprod"]), atol=1e-6, rtol=1e-5
        )
        scheduler.set_timesteps(200)
        assert scheduler.timesteps.flip(0).tolist() == arrays["ddim_timesteps_200"].tolist()


def test_index_names_every_component(converted_dir):
    index = json.loads((converted_dir / "model_index.json").read_text())
    assert index["_class_name"] == "QAMDTPipeline"
    assert index["transformer"] == ["qamdt.models.transformer_qamdt", "QAMDTTransformer2DModel"]
    components = {name for name, value in index.items() if isinstance(value, list)}
    assert components == {path.name for path in converted_dir.iterdir() if path.is_dir()}


def test_the_pipeline_reads_the_folder_and_generates(converted_dir):
    pipeline = QAMDTPipeline.from_pretrained(converted_dir)
    pipeline.set_progress_bar_config(disable=True)
    audios = pipeline("piano", quality="high", num_inference_steps=2, eta=1.0, guidance_scale=3.5).audios
    assert audios.shape == (1, 16 * 4 * 160)
    assert np.isfinite(audios).all()
    assert pipeline.quality_stats.edges == (3.4, 3.6, 4.0, 4.2)


def convert(path, output_dir, text_encoder_dir, **options):
    options = {"unet_params": TINY_PARAMS, "text_encoder": text_encoder_dir} | options
    return convert_checkpoint(path, output_dir, **options)


def save(checkpoint, path, **changes):
    """Writes the checkpoint with some tensors changed, or left out where they are None."""
    state_dict = {name: t for name, t in (checkpoint["state_dict"] | changes).items() if t is not None}
    torch.save({"state_dict": state_dict}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_factor": None}, "no `scale_factor`"),
        ({"betas": None}, "no `betas`"),
        ({"betas": torch.linspace(0.0001, 0.02, 1000)}, "noise schedule"),
        ({"first_stage_model.encoder.conv_in.bias": None}, "1 missing: encoder.conv_in.bias"),
        ({"first_stage_model.vocoder.extra": torch.zeros(1)}, "1 surplus: extra"),
        ({"cond_stage_models.0.model.encoder.final_layer_norm.weight": None}, "1 missing: encoder.final_layer_norm"),
        ({"discriminator.weight": torch.zeros(1)}, "1 surplus: discriminator.weight"),
        ({ema_name("mask_token"): torch.zeros(1, 1, 65)}, "mask_token"),
        ({"model.diffusion_model.pos_embed": torch.zeros(1, 32, 64)}, "`unet_params` do not fit the positions"),
    ],
)
def test_wrong_checkpoints_are_refused_and_leave_nothing(checkpoint, text_encoder_dir, tmp_path, changes, message):
    path = save(checkpoint, tmp_path / "wrong.ckpt", **changes)
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out", text_encoder_dir)
    assert [entry.name for entry in tmp_path.iterdir()] == ["wrong.ckpt"]


def test_checkpoint_without_moving_average(checkpoint, text_encoder_dir, tmp_path):
    changes = dict.fromkeys(name for name in checkpoint["state_dict"] if name.startswith("model_ema."))
    path = save(checkpoint, tmp_path / "plain.ckpt", **changes)
    with pytest.raises(ValueError, match="use_ema=False"):
        convert(path, tmp_path / "out", text_encoder_dir)
    converted = convert(path, tmp_path / "out", text_encoder_dir, use_ema=False)
    transformer = QAMDTTransformer2DModel.from_pretrained(converted / "transformer")
    assert torch.equal(transformer.mask_token, checkpoint["state_dict"]["model.diffusion_model.mask_token"])


def test_truncated_and_foreign_files_are_refused(checkpoint_path, text_encoder_dir, tmp_path):
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(checkpoint_path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cut short"):
        convert(truncated, tmp_path / "out", text_encoder_dir)
    with pytest.raises(FileNotFoundError, match="`checkpoint_path`"):
        convert(tmp_path / "nowhere.ckpt", tmp_path / "out", text_encoder_dir)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="entry `state_dict`"):
        convert(tmp_path / "other.ckpt", tmp_path / "out", text_encoder_dir)


class Hyperparameters:
    """Stands for the objects that some checkpoints carry and that only a full unpickling can read."""


def test_objects_in_a_checkpoint_need_permission(checkpoint, text_encoder_dir, tmp_path):
    path = tmp_path / "objects.ckpt"
    torch.save(checkpoint | {"hyper_parameters": Hyperparameters()}, path)
    with pytest.raises(ValueError, match="allow_pickle=True"):
        convert(path, tmp_path / "out", text_encoder_dir)
    assert convert(path, tmp_path / "out", text_encoder_dir, allow_pickle=True).is_dir()


def test_missing_tokenizer_is_refused_before_anything_is_written(checkpoint_path, tmp_path):
    with pytest.raises(ValueError, match="`text_encoder` must be a folder"):
        convert(checkpoint_path, tmp_path / "out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_existing_output_is_not_overwritten(checkpoint_path, text_encoder_dir, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="`output_dir` must not exist"):
        convert(checkpoint_path, tmp_path, text_encoder_dir)
