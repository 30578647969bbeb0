"""CLAP models behind their interface, and LAION checkpoints on their way into `ClapModel`."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertTokenizerFast, ClapConfig, ClapFeatureExtractor, ClapModel

from whisq.clap import EmbeddedClap, LaionClap, TransformersClap, embed_windows, load_clap, split_windows
from whisq.convert_clap import build_model, describe_laion_weights, main, read_laion_weights


RATE = 48_000


def tiny_clap(enable_fusion):
    torch.manual_seed(0)
    config = ClapConfig(
        text_config={
            "vocab_size": 8,
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "intermediate_size": 16,
            "max_position_embeddings": 80,
            "layer_norm_eps": 1e-5,
        },
        audio_config={
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "depths": [1, 2],
            "num_attention_heads": [1, 2],
            "num_hidden_layers": 2,
            "enable_fusion": enable_fusion,
            "fusion_type": "aff_2d" if enable_fusion else None,
        },
        projection_dim=12,
    )
    return ClapModel(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    words = ["<s>", "<pad>", "</s>", "<unk>", "slow", "fast", "music", "jazz"]
    vocab = {word: number for number, word in enumerate(words)}
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    return BertTokenizerFast(vocab=vocab, **special)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fusion"])
def clap(request, tokenizer):
    extractor = ClapFeatureExtractor(max_length_s=1, truncation="fusion" if request.param else "rand_trunc")
    return TransformersClap(tiny_clap(request.param), extractor, tokenizer, name="tiny")


def noise(seconds, seed=0):
    return np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32) / 10


def test_embeddings_are_the_models_own(clap, tokenizer):
    waveform = noise(1.0)
    inputs = clap.feature_extractor(waveform, sampling_rate=RATE, return_tensors="pt")
    inputs["is_longer"][:] = False
    with torch.no_grad():
        audio = clap.model.get_audio_features(**inputs).pooler_output
        text = clap.model.get_text_features(**tokenizer("slow music", return_tensors="pt")).pooler_output
    np.testing.assert_allclose(clap.embed_audio([waveform], RATE), audio, atol=1e-5)
    np.testing.assert_allclose(clap.embed_text(["slow music"]), text, atol=1e-5)


def test_embeddings_are_deterministic_and_independent_of_their_batch(clap):
    waveforms = [noise(2.5, 1), noise(0.7, 2), noise(1.0, 3)]
    together = clap.embed_audio(waveforms, RATE)
    np.testing.assert_array_equal(clap.embed_audio(waveforms, RATE), together)
    alone = np.concatenate([clap.embed_audio([waveform], RATE) for waveform in waveforms])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    texts = ["jazz", "slow music jazz fast"]
    np.testing.assert_allclose(clap.embed_text(texts)[0], clap.embed_text(texts[:1])[0], atol=1e-5)


def test_other_sampling_rates_are_resampled(clap):
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    low = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    assert np.sum(clap.embed_audio([tone], RATE) * clap.embed_audio([low], 16_000)) > 0.99


def test_a_model_is_loaded_from_its_folder_and_named_by_its_weights(clap, tmp_path):
    clap.model.save_pretrained(tmp_path)
    clap.feature_extractor.save_pretrained(tmp_path)
    clap.tokenizer.save_pretrained(tmp_path)
    loaded = load_clap(str(tmp_path))
    np.testing.assert_allclose(loaded.embed_audio([noise(1)], RATE), clap.embed_audio([noise(1)], RATE), atol=1e-5)
    np.testing.assert_allclose(loaded.embed_text(["jazz"]), clap.embed_text(["jazz"]), atol=1e-5)
    torch.nn.init.ones_(clap.model.text_projection.linear2.bias)
    clap.model.save_pretrained(tmp_path)
    assert load_clap(str(tmp_path)).name != loaded.name


def test_windows_cover_the_clip_once_but_for_a_short_rest():
    clip = np.arange(25)
    assert [window.tolist() for window in split_windows(clip[:21], 10)] == [list(range(10)), list(range(10, 20)), [20]]
    assert [len(window) for window in split_windows(np.arange(205), 100)] == [100, 100]
    assert [len(window) for window in split_windows(clip[:3], 100)] == [3]


def test_windows_count_by_their_length():
    directions = {30: [1.0, 0.0], 10: [0.0, 1.0]}
    embedded = embed_windows([np.zeros(40)], 30, lambda windows: np.array([directions[len(w)] for w in windows]))
    np.testing.assert_allclose(embedded[0] / embedded[0, 0], [1, 1 / 3], rtol=1e-6)


def test_bad_waveforms_are_refused(clap):
    for waveform in (np.zeros(0, np.float32), np.full(100, np.nan, np.float32), np.zeros((2, 10), np.float32)):
        with pytest.raises(ValueError, match=r"`waveforms\[0\]` must be finite mono samples"):
            clap.embed_audio([waveform], RATE)


def test_the_embedded_model_sits_behind_the_same_interface(tmp_path):
    from whisq.modeling_clap import MiniClap

    torch.manual_seed(0)
    model = MiniClap(channels=(4, 4, 8), hidden_size=16, num_layers=1, embedding_size=8)
    clap = EmbeddedClap(model)
    long, short = noise(12)[: 16_000 * 12], noise(2)[: 16_000 * 2]
    together = clap.embed_audio([long, short], 16_000)
    assert together.shape == (2, 8)
    np.testing.assert_allclose(clap.embed_audio([short], 16_000)[0], together[1], atol=1e-4)
    assert clap.name.startswith("clap-mini@")
    model.save_pretrained(tmp_path)
    loaded = load_clap(str(tmp_path))
    assert loaded.name == clap.name
    np.testing.assert_allclose(loaded.embed_audio([short], 16_000), clap.embed_audio([short], 16_000), atol=1e-5)


def laion_weights(model):
    """Turns a `ClapModel` into what LAION's code would have saved: query, key and value joined, its own names."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if (
            name.endswith("token_type_ids")
            or ".key." in name
            and "audio" in name
            or ".value." in name
            and "audio" in name
        ):
            continue
        if ".query." in name and "audio" in name:
            tensor = torch.cat([model.state_dict()[name.replace("query", part)] for part in ("query", "key", "value")])
            name = name.replace("attention.self.query", "attn.qkv")
        if name.startswith("audio_model"):
            for ours, theirs in (
                ("audio_model.audio_encoder", "audio_branch"),
                ("batch_norm", "bn0"),
                ("attention.self", "attn"),
                ("attention.output.dense", "attn.proj"),
                ("layernorm_before", "norm1"),
                ("layernorm_after", "norm2"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
            ):
                name = name.replace(ours, theirs)
        name = name.replace("text_model", "text_branch").replace("linear1", "0").replace("linear2", "2")
        weights[f"module.{name}"] = tensor
    weights["module.audio_branch.tscam_conv.weight"] = torch.zeros(3)
    weights["module.text_transform.sequential.0.weight"] = torch.zeros(3)
    weights["module.audio_branch.layers.0.blocks.0.attn_mask"] = torch.zeros(3)
    return weights


@pytest.mark.parametrize("has_fusion", [False, True])
def test_laion_weights_find_their_places(has_fusion, tmp_path, tokenizer):
    original = tiny_clap(has_fusion)
    checkpoint = {"epoch": np.float64(3.0), "state_dict": laion_weights(original), "name": "tiny"}
    torch.save(checkpoint, tmp_path / "laion.pt")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = [str(tmp_path / "laion.pt"), str(tmp_path / "clap"), "--tokenizer", str(tmp_path / "tokenizer")]
    assert main(arguments) == 0
    assert {path.name for path in (tmp_path / "clap").glob("*.safetensors")} == {"model.safetensors"}

    clap = load_clap(str(tmp_path / "clap"))
    assert clap.feature_extractor.truncation == ("fusion" if has_fusion else "rand_trunc")
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(clap.model.state_dict()[name], tensor, msg=name)


def test_what_the_weights_say_of_their_network(tmp_path):
    torch.save(laion_weights(tiny_clap(True)), tmp_path / "bare.pt")
    weights = read_laion_weights(tmp_path / "bare.pt")
    network = describe_laion_weights(weights)
    assert (network.width, network.depths, network.num_heads) == (8, (1, 2), (1, 2))
    assert network.has_fusion
    save_file({name: tensor.clone() for name, tensor in weights.items()}, tmp_path / "bare.safetensors")
    assert read_laion_weights(tmp_path / "bare.safetensors").keys() == weights.keys()


class Malicious:
    def __reduce__(self):
        return print, ("this ran",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    for name, write in (("zip.pt", torch.save), ("raw.pt", lambda obj, path: path.write_bytes(pickle.dumps(obj)))):
        write({"state_dict": {"x": Malicious()}}, tmp_path / name)
        assert main([str(tmp_path / name), str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert "is no file of plain weights" in captured.err
        assert "this ran" not in captured.out
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path):
    weights = {name.removeprefix("module."): tensor for name, tensor in laion_weights(tiny_clap(False)).items()}
    del weights["audio_branch.norm.bias"]
    weights["audio_branch.surprise"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 missing .*norm\.bias.*1 unexpected .*surprise"):
        build_model(weights)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no CLAP with an HTSAT audio encoder"):
        read_laion_weights(tmp_path / "other.pt")


def test_a_laion_checkpoint_without_its_package_says_what_to_do(tmp_path):
    try:
        import laion_clap  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"Install the package `laion-clap`.*or convert it"):
            LaionClap(tmp_path / "laion.pt")
    else:
        pytest.skip("laion-clap is installed")
