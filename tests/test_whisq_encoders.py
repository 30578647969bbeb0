import json
import logging
import sys
import types
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from whisq.encoders import EMBEDDED, WhisperAudioEncoder, load_audio_encoder, load_text_encoder
from whisq.modeling_clap import MiniClap


LENGTHS = (16_000, 9_999, 3_210)  # samples; the tiny Whisper hears at most one second
NUM_TOKENS = [50, 32, 11]  # a token for each 20 ms begun
WORDS = "[PAD] [UNK] [EOS] a calm piano fast drums and loud guitar".split()


def make_whisper():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=20,
        num_mel_bins=20,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_source_positions=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # biases of zero would hide what convolutions make of padding
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def whisper_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    make_whisper().save_pretrained(folder)
    return folder


def make_waveforms():
    """Three clips, padded with what must not be heard."""
    waveforms = 0.1 * torch.randn(3, max(LENGTHS), generator=torch.Generator().manual_seed(1))
    for waveform, length in zip(waveforms, LENGTHS, strict=True):
        waveform[length:] = 1.0
    return waveforms, torch.tensor(LENGTHS)


def library_tokens(lengths):
    """What the library's own encoder makes of the clips, each padded to the limit."""
    waveforms, _ = make_waveforms()
    clips = [waveform[:length].numpy() for waveform, length in zip(waveforms, lengths, strict=False)]
    extract = WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    features = extract(clips, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        return make_whisper().model.encoder(features).last_hidden_state


def make_tokenizer():
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[EOS]", padding_side="left")


def make_text_model(kind):
    """Tiny text models of the three shapes: decoder, encoder, and both."""
    torch.manual_seed(0)
    if kind == "decoder":
        config = Qwen3Config(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
        return Qwen3ForCausalLM(config)
    if kind == "encoder":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return BertModel(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes))
    return T5Model(T5Config(vocab_size=20, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2))


# Whisper.


def test_whisper_on_clips_of_full_length_computes_what_the_library_computes(whisper_dir):
    encoder = load_audio_encoder(whisper_dir)
    waveforms, lengths = make_waveforms()
    tokens, mask = encoder.encode(waveforms[:1], lengths[:1])
    assert mask.all()
    torch.testing.assert_close(tokens, library_tokens(LENGTHS[:1]), rtol=0, atol=0)


def test_whisper_at_the_published_size_of_context_equals_the_library():
    """3,000 mel frames, 1,500 tokens."""
    torch.manual_seed(0)
    config = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)
    library = WhisperEncoder(config).eval().requires_grad_(False)
    features = torch.randn(1, 80, 3000)
    tokens, mask = WhisperAudioEncoder(library, "whisper").encode_features(features, torch.tensor([3000]))
    assert mask.sum() == 1500
    torch.testing.assert_close(tokens, library(features).last_hidden_state, rtol=0, atol=0)


def test_whisper_hears_neither_padding_nor_the_other_clips(whisper_dir):
    encoder = load_audio_encoder(whisper_dir)
    waveforms, lengths = make_waveforms()
    tokens, mask = encoder.encode(waveforms, lengths)
    assert mask.sum(dim=1).tolist() == NUM_TOKENS
    for clip in range(3):
        alone, alone_mask = encoder.encode(waveforms[clip, None, : LENGTHS[clip]], lengths[clip, None])
        assert alone.shape[1] == alone_mask.sum() == NUM_TOKENS[clip]
        torch.testing.assert_close(alone[0], tokens[clip][mask[clip]], rtol=0, atol=1e-5)


def test_whisper_can_pad_to_its_limit_as_the_library_does(whisper_dir):
    encoder = load_audio_encoder(f"{whisper_dir}+30s")
    assert encoder.name == f"{whisper_dir}+30s"
    waveforms, lengths = make_waveforms()
    tokens, mask = encoder.encode(waveforms, lengths)
    assert mask.sum(dim=1).tolist() == NUM_TOKENS
    torch.testing.assert_close(tokens, library_tokens(LENGTHS), rtol=0, atol=1e-6)
    short, _ = load_audio_encoder(whisper_dir).encode(waveforms, lengths)
    assert (short[2] - tokens[2])[:11].abs().max() > 1e-3


def test_every_whisper_checkpoint_loads_without_its_decoder(whisper_dir, tmp_path):
    """Saved with the language head, without it, or as the encoder alone."""
    waveforms, lengths = make_waveforms()
    expected, _ = load_audio_encoder(whisper_dir).encode(waveforms, lengths)
    make_whisper().model.save_pretrained(tmp_path / "model")
    load_audio_encoder(whisper_dir).save_pretrained(tmp_path / "encoder")
    for folder in ("model", "encoder"):
        encoder = load_audio_encoder(tmp_path / folder)
        assert not any("decoder" in name for name, _ in encoder.named_parameters())
        torch.testing.assert_close(encoder.encode(waveforms, lengths)[0], expected, rtol=0, atol=0)


def test_a_checkpoint_without_all_weights_is_refused(whisper_dir, tmp_path):
    config = json.loads((whisper_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"encoder_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((whisper_dir / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"lacks 15 weights of WhisperEncoderAlone, such as 'layers\.2"):
        load_audio_encoder(tmp_path)


def test_clips_that_whisper_cannot_hear_whole_are_refused(whisper_dir):
    with pytest.raises(ValueError, match="at most 1 s long .* got a clip of 1.5 s; cut it into windows"):
        load_audio_encoder(whisper_dir).encode(torch.zeros(1, 24_000), torch.tensor([24_000]))


def test_encoders_are_frozen_until_told_otherwise(whisper_dir):
    encoder = load_audio_encoder(whisper_dir)
    assert not encoder.training
    waveforms, lengths = make_waveforms()
    assert not encoder.encode(waveforms, lengths)[0].requires_grad
    encoder.requires_grad_(True)
    encoder.encode(waveforms, lengths)[0].sum().backward()
    assert encoder.encoder.conv1.weight.grad.any()


@pytest.mark.parametrize("lengths", [[0], [17_000], [100, 100]])
def test_lengths_that_do_not_fit_the_waveforms_are_refused(whisper_dir, lengths):
    with pytest.raises(ValueError, match="`lengths`"):
        load_audio_encoder(whisper_dir).encode(torch.zeros(1, 16_000), torch.tensor(lengths))


# MuQ. Its package needs a torchaudio that there is none of for CPU builds of torch, so a stand-in takes its place.


class StandInForMuQ(nn.Module):
    """Has the parts of a `muq.MuQ` that the encoder calls: 24 kHz in, 25 tokens a second out, and no mask."""

    config = types.SimpleNamespace(encoder_dim=4, label_rate=25)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.model = types.SimpleNamespace(
            preprocessing=self.measure_loudness,
            normalize=lambda features: features,
            conv=self.widen,
            conformer=StandInForConformer(),
        )

    @classmethod
    def from_pretrained(cls, folder, revision=None):
        return cls()

    def measure_loudness(self, waveforms, features):
        assert waveforms.shape[1] >= 24_000
        frames = waveforms[:, : waveforms.shape[1] // 960 * 960].unflatten(1, (-1, 960))
        return {features[0]: frames.square().mean(dim=2)}

    def widen(self, loudness):
        return loudness[:, :, None] * self.scale


class StandInForConformer:
    """As in transformers 5: without the attribute it fails, and it returns the last states alone."""

    def __init__(self):
        self.config = types.SimpleNamespace()

    def __call__(self, hidden_states):
        assert self.config._attn_implementation == "eager"
        return types.SimpleNamespace(last_hidden_state=hidden_states)


@pytest.fixture
def muq_dir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"encoder_dim": 4, "label_rate": 25, "w2v2_config": {}}))
    return tmp_path


def test_muq_gets_clips_one_by_one_at_its_own_rate(muq_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "muq", types.SimpleNamespace(MuQ=StandInForMuQ))
    encoder = load_audio_encoder(muq_dir)
    lengths = torch.tensor([32_000, 16_000, 1_600])
    waveforms = torch.full((3, 32_000), 0.5)  # the padding is as loud as the clips
    tokens, mask = encoder.encode(waveforms, lengths)
    assert (encoder.hidden_size, encoder.frames_per_s) == (4, 25.0)
    assert mask.sum(dim=1).tolist() == [50, 25, 3]  # 2 s, 1 s and 0.1 s
    torch.testing.assert_close(tokens[0, 5:45], torch.full((40, 4), 0.25), rtol=0.01, atol=0)
    assert not tokens.requires_grad


def test_muq_without_its_package_says_what_to_install(muq_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "muq", None)
    with pytest.raises(ImportError, match="pip install muq"):
        load_audio_encoder(muq_dir)


# Text.


@pytest.mark.parametrize("kind", ["decoder", "encoder", "encoder-decoder"])
def test_a_prompt_gets_the_same_tokens_alone_and_beside_longer_ones(kind, tmp_path):
    make_text_model(kind).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    encoder = load_text_encoder(tmp_path)
    prompts = ["calm piano", "fast drums and a loud guitar"]
    tokens, mask = encoder.encode(prompts)
    assert tokens.shape == (2, 6, encoder.hidden_size)
    assert mask.sum(dim=1).tolist() == [2, 6]
    assert mask[0, :2].all()
    assert not tokens.requires_grad
    alone, _ = encoder.encode(prompts[:1])
    torch.testing.assert_close(alone[0], tokens[0, :2], rtol=0, atol=1e-5)


def test_a_fine_tuned_text_encoder_loads_again(tmp_path):
    make_text_model("decoder").save_pretrained(tmp_path / "first")
    make_tokenizer().save_pretrained(tmp_path / "first")
    encoder = load_text_encoder(tmp_path / "first").requires_grad_(True)
    encoder.encode(["calm piano"])[0].sum().backward()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter -= 0.1 * parameter.grad
    encoder.save_pretrained(tmp_path / "second")
    again = load_text_encoder(tmp_path / "second")
    torch.testing.assert_close(again.encode(["calm piano"]), encoder.encode(["calm piano"]), rtol=0, atol=0)


def test_long_prompts_are_cut_with_a_warning(tmp_path, caplog):
    make_text_model("encoder").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    encoder = load_text_encoder(tmp_path)
    with caplog.at_level(logging.WARNING):
        _, mask = encoder.encode(["calm " * 20])
    assert mask.sum() == 8
    assert "cut at 8" in caplog.text


def test_prompts_without_a_word_are_refused():
    with pytest.raises(ValueError, match=r"`texts` must be prompts of at least one word, got nothing in texts\[1\]"):
        load_text_encoder(EMBEDDED).encode(["piano", " "])


# Names.


def test_the_embedded_text_encoder_loads_again_by_its_full_name():
    encoder = load_text_encoder(EMBEDDED)
    assert encoder.name == "embedded@all-MiniLM-L6-v2"
    assert encoder.hidden_size == 384
    tokens, mask = load_text_encoder(encoder.name).encode(["a calm piano"])
    assert tokens.shape == (1, 5, 384)
    assert mask.all()
    with pytest.raises(ValueError, match="`revision` must be that of the embedded encoder"):
        load_text_encoder("embedded@another")


def test_the_embedded_audio_encoder_loads_again_by_its_full_name():
    encoder = load_audio_encoder(EMBEDDED)
    kind, _, name = encoder.name.partition("@")
    assert kind == EMBEDDED
    assert name
    assert load_audio_encoder(encoder.name).name == encoder.name
    waveforms, lengths = make_waveforms()
    tokens, mask = encoder.encode(waveforms, lengths)
    alone, _ = encoder.encode(waveforms[1:2, : LENGTHS[1]], lengths[1:2])
    torch.testing.assert_close(tokens[1][mask[1]], alone[0][: mask[1].sum()], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="`revision` must be that of the embedded encoder"):
        load_audio_encoder("embedded@another")


def test_the_tower_of_a_saved_clap_is_an_audio_encoder(tmp_path):
    clap = MiniClap(num_mel_bins=16, channels=(2, 2, 2), hidden_size=8, num_layers=1, embedding_size=4)
    clap.save_pretrained(tmp_path)
    encoder = load_audio_encoder(tmp_path)
    assert (encoder.name, encoder.hidden_size, encoder.frames_per_s) == (str(tmp_path), 8, 12.5)
    tokens, mask = encoder.encode(*make_waveforms())
    assert tokens.shape == (3, 13, 8)
    assert mask.shape == (3, 13)
    torch.testing.assert_close(tokens, clap.eval().audio_tower.encode(*make_waveforms())[0], rtol=0, atol=0)


def test_a_hub_encoder_is_named_by_its_commit(whisper_dir, tmp_path, monkeypatch):
    """The cache of huggingface_hub, laid out as a download leaves it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--whisper"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in Path(whisper_dir).iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for module in ("transformers.utils.hub", "huggingface_hub.file_download"):
        if hasattr(sys.modules[module], "HF_HUB_CACHE"):
            monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path))
    encoder = load_audio_encoder("someone/whisper")
    assert encoder.name == f"someone/whisper@{commit}"
    assert load_audio_encoder(f"{encoder.name}+30s").name == f"{encoder.name}+30s"
    assert load_audio_encoder("someone/whisper", revision=commit).name == encoder.name
    with pytest.raises(ValueError, match="`revision` must agree with the name"):
        load_audio_encoder(encoder.name, revision="main")


@pytest.mark.parametrize("load", [load_audio_encoder, load_text_encoder])
@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where", "whisper@main"])
def test_names_of_nothing_are_refused(load, name):
    with pytest.raises(FileNotFoundError, match="an existing folder or a Hub id"):
        load(name)


def test_folders_of_something_else_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder with a config.json"):
        load_audio_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="must name a Whisper, MuQ, `MiniClap` or `AudioTower` model"):
        load_audio_encoder(tmp_path)
    with pytest.raises(ValueError, match="'\\+30s' is for Whisper"):
        load_audio_encoder(f"{tmp_path}+30s")
    with pytest.raises(ValueError, match="`revision` must be left out for a folder"):
        load_audio_encoder(tmp_path, revision="main")
