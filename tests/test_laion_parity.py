"""LAION's own code and `ClapModel` give the same embeddings; runs where the package `laion-clap` is installed."""

import numpy as np
import pytest
import torch
import transformers

from whisq.clap import LaionClap, TransformersClap
from whisq.convert_clap import build_feature_extractor, build_model, read_laion_weights


hook = pytest.importorskip("laion_clap.hook")
RATE = 48_000
TEXTS = ["slow music", "fast jazz music music slow"]


@pytest.fixture
def tokenizer(monkeypatch):
    """A small RoBERTa in the place of the one that LAION's code would fetch from the Hub."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "slow", "fast", "music", "jazz"]
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, **special)
    config = transformers.RobertaConfig(
        vocab_size=len(words),
        num_hidden_layers=1,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    monkeypatch.setattr(
        transformers.RobertaModel, "from_pretrained", lambda name: transformers.RobertaModel(config).eval()
    )
    monkeypatch.setattr(hook.RobertaTokenizer, "from_pretrained", lambda name: tokenizer)
    return tokenizer


@pytest.mark.parametrize("has_fusion", [False, True])
def test_both_give_the_same_embeddings(has_fusion, tokenizer, tmp_path):
    if has_fusion:
        pytest.importorskip("torchaudio")  # LAION's front end for feature fusion
    torch.manual_seed(0)
    original = hook.CLAP_Module(enable_fusion=has_fusion, amodel="HTSAT-tiny", device="cpu").model
    for name, buffer in original.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer)  # an untrained normalisation would hide a wrong one
    torch.save({"epoch": 1, "state_dict": original.state_dict()}, tmp_path / "laion.pt")

    laion = LaionClap(tmp_path / "laion.pt")
    extractor = build_feature_extractor(has_fusion)
    model = build_model(read_laion_weights(tmp_path / "laion.pt"))
    converted = TransformersClap(model, extractor, tokenizer, name="converted")
    np.testing.assert_allclose(converted.embed_text(TEXTS), laion.embed_text(TEXTS), atol=1e-5)

    seconds = np.arange(12 * RATE) / RATE
    sweep = (0.3 * np.sin(2 * np.pi * (200 + 150 * seconds) * seconds)).astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32) / 10
    ours, theirs = (clap.embed_audio([sweep, noise], RATE) for clap in (converted, laion))
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert (ours * theirs).sum(axis=1).min() > 0.9999
    np.testing.assert_array_equal(laion.embed_audio([sweep, noise], RATE), theirs)
