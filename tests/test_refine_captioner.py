"""Captioners: what is measured in sounds whose facts are known, what tags say, and models of transformers."""

import numpy as np
import pytest
import soxr
import torch
from scipy.signal import butter, sosfilt
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    BertConfig,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from data_prep.refine.captioner import (
    caption_by_measuring,
    caption_by_tags,
    describe_in_one_phrase,
    describe_measurements,
    measure,
)
from data_prep.refine.captioner_model import CAPTION_PROMPT, TransformersCaptioner
from data_prep.refine.outcomes import MEASURED, TAGS, Candidate
from qamdt.manifest import Record


RATE = 16_000


def melody(pitches, notes_per_second, seconds=10, decay=6.0):
    """Harmonic notes in turn, each dying away."""
    spacing = round(RATE / notes_per_second)
    waveform = np.zeros(seconds * RATE)
    for index, start in enumerate(range(0, len(waveform), spacing)):
        times = np.arange(len(waveform) - start) / RATE
        frequency = 440 * 2 ** ((pitches[index % len(pitches)] - 69) / 12)
        partials = sum(np.sin(2 * np.pi * frequency * k * times) / k for k in range(1, 9) if frequency * k < 8000)
        waveform[start:] += partials * np.exp(-decay * times)
    return (0.5 * waveform / np.abs(waveform).max()).astype(np.float32)


CADENCE = melody([70, 74, 77, 75, 79, 82, 77, 81, 84, 70, 74, 77], notes_per_second=2)  # B flat major, 120 a minute
RECORD = Record(id="a", path="a.wav", duration_in_s=10.0, tags={"style": "waltz", "instruments": ["flute", "harp"]})


def test_tempo_and_key_are_measured_and_said():
    [candidate, *_] = caption_by_measuring(RECORD, CADENCE, RATE)
    assert candidate.source == MEASURED
    assert candidate.text in {f"music in Bb major at {bpm} bpm" for bpm in (60, 120)}


def test_words_for_the_sound_are_said_of_clips_that_stand_out():
    generator = np.random.default_rng(0)
    strokes = np.zeros(10 * RATE, np.float32)
    for start in range(0, len(strokes), RATE // 2):
        strokes[start : start + 400] = 0.8 * generator.standard_normal(400) * np.exp(-np.arange(400) / 80)
    held = 0.01 * np.sin(2 * np.pi * 220 * np.arange(10 * RATE) / RATE).astype(np.float32)
    muffled = 3 * sosfilt(butter(4, 300, fs=RATE, output="sos"), CADENCE).astype(np.float32)
    assert describe_measurements(measure(strokes, RATE))[-1] == "music with a bright, percussive sound"
    assert describe_measurements(measure(held, RATE))[-1] == "music with a quiet, dark, smooth sound"
    assert "dark" in describe_measurements(measure(muffled, RATE))[-1]


def test_measurements_do_not_depend_on_the_sampling_rate():
    low, high = measure(CADENCE, RATE), measure(soxr.resample(CADENCE, RATE, 48_000), 48_000)
    assert low.key == high.key
    assert high.tempo_bpm == pytest.approx(low.tempo_bpm, rel=0.01)
    assert high.brightness_hz == pytest.approx(low.brightness_hz, rel=0.02)


def test_a_key_or_tempo_that_is_unclear_is_not_said():
    noise = measure(0.1 * np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32), RATE)
    assert not any(" in " in text or "bpm" in text for text in describe_measurements(noise))
    clear = measure(CADENCE, RATE)
    assert clear.tempo_clarity > noise.tempo_clarity
    assert clear.key_margin > noise.key_margin


def test_silence_and_snippets_are_not_described():
    assert caption_by_measuring(RECORD, np.zeros(10 * RATE, np.float32), RATE) == []
    assert caption_by_measuring(RECORD, CADENCE[: 2 * RATE], RATE) == []


def test_tags_become_a_phrase():
    assert caption_by_tags(RECORD, CADENCE, RATE) == [Candidate("waltz music with flute and harp", TAGS)]
    tags = {"mood": "sad", "genre": ["folk"], "key": "A minor", "bpm": 80, "split": "test"}
    assert describe_in_one_phrase(tags) == "sad folk music in A minor at 80 bpm"
    assert describe_in_one_phrase({"split": "test"}) == ""


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(0)
    vocab = {token: number for number, token in enumerate(["<|endoftext|>", "<|startoftranscript|>", *"abcdefgh"])}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], bos_token="<|startoftranscript|>")
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=50,
        max_target_positions=32,
        decoder_start_token_id=1,
        bos_token_id=1,
        pad_token_id=0,
        eos_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    torch.nn.init.zeros_(model.model.decoder.embed_tokens.weight[:2])  # so that it says letters
    return model, WhisperProcessor(extractor, tokenizer)


@pytest.fixture(scope="module")
def chat_tokenizer():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<sound>"]
    words = [*special, "slow", "fast", "music", "jazz", "this"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="this"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="this"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    return tokenizer


LANGUAGE_MODEL = {
    "model_type": "qwen2",
    "vocab_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture(scope="module")
def qwen_audio(chat_tokenizer):
    torch.manual_seed(0)
    audio_config = {
        "num_mel_bins": 8,
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "max_source_positions": 50,
    }
    config = Qwen2AudioConfig(audio_config=audio_config, text_config=LANGUAGE_MODEL, audio_token_index=3)
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    model = Qwen2AudioForConditionalGeneration(config)
    torch.nn.init.zeros_(model.get_output_embeddings().weight[:7])  # so that it says words
    return model, Qwen2AudioProcessor(extractor, chat_tokenizer)


@pytest.fixture(scope="module")
def audio_flamingo(chat_tokenizer):
    torch.manual_seed(0)
    audio_config = {
        "num_mel_bins": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_source_positions": 50,
    }
    config = AudioFlamingo3Config(audio_config=audio_config, text_config=LANGUAGE_MODEL, audio_token_id=6)
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    template = "{% for part in messages[0]['content'] %}{{ '<sound>' if part['type'] == 'audio' else part['text'] }}{% endfor %}"
    processor = AudioFlamingo3Processor(extractor, chat_tokenizer, chat_template=template)
    model = AudioFlamingo3ForConditionalGeneration(config)
    torch.nn.init.zeros_(model.get_output_embeddings().weight[:7])
    return model, processor


@pytest.mark.parametrize("family", ["whisper", "qwen_audio", "audio_flamingo"])
def test_a_model_of_transformers_describes_each_window(family, request, tmp_path):
    model, processor = request.getfixturevalue(family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    captioner = TransformersCaptioner.from_pretrained(str(tmp_path), window_in_s=1.0)
    captioner.max_new_tokens = 6
    waveform = np.concatenate([CADENCE[:RATE], np.random.default_rng(0).standard_normal(RATE).astype(np.float32)])
    texts = [captioner.describe(window) for window in (waveform[:RATE], waveform[RATE:])]
    candidates = captioner(RECORD, waveform, RATE)
    assert [candidate.text for candidate in candidates] == [text for text in dict.fromkeys(texts) if text]
    assert candidates
    assert {candidate.source for candidate in candidates} == {captioner.name}
    assert captioner(RECORD, waveform, RATE) == candidates


def test_a_chat_model_is_asked_for_a_description_and_its_answer_has_no_question_in_it(qwen_audio):
    model, processor = qwen_audio
    captioner = TransformersCaptioner(model, processor, name="tiny", window_in_s=1.0, max_new_tokens=4)
    inputs = captioner._prepare(CADENCE[:RATE])
    num_audio_tokens = int((inputs["input_ids"] == 3).sum())
    assert num_audio_tokens == 25
    assert inputs["input_ids"].shape[1] > num_audio_tokens + len(CAPTION_PROMPT.split())
    assert len(captioner.describe(CADENCE[:RATE]).split()) <= 4


def test_a_model_that_hears_nothing_is_refused(tmp_path, qwen_audio, chat_tokenizer):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="answers audio with text, got .* which is a bert"):
        TransformersCaptioner.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="'text only' hears nothing"):
        TransformersCaptioner(qwen_audio[0], chat_tokenizer, name="text only")
