"""The text encoder in the loop: what a training gets is what cached states would have been."""

import dataclasses
import json

import pytest
import torch

import train_qamdt
from data_prep.latent_encoders import describe_text_encoder, load_text_encoder
from data_prep.latent_units import read_states
from data_prep.latent_update import EncodingOptions
from data_prep.text_costs import describe_text_costs
from data_prep.training_latents import find_latents, load_online_texts
from qamdt.audio import write_audio
from qamdt.manifest import Record, write_manifest
from qamdt.settings import build
from qamdt.training.config import DataConfig, TrainConfig
from qamdt.training.dataset import LatentDataset, collate
from qamdt.training.online_texts import OnlineTexts
from tests.tiny_training import MODEL, StopAfter


@pytest.fixture
def manifest(tmp_path):
    records = []
    for i in range(4):
        write_audio(tmp_path / f"{i}.wav", torch.rand(5120, generator=torch.Generator().manual_seed(i)) - 0.5, 16_000)
        records.append(Record(id=f"{i}", path=f"{i}.wav", duration_in_s=0.32, captions=(f"song {i} " * (i + 1),)))
    write_manifest(tmp_path / "manifest.jsonl", records)
    return tmp_path / "manifest.jsonl"


def open_dataset(manifest, text):
    latents = find_latents(str(manifest), str(manifest.parent / text), text=text)
    return LatentDataset(DataConfig(latents=latents, text=text, crop_in_frames=4, scaling_factor=1.0), seed=0)


def test_states_are_those_that_would_be_cached(manifest):
    cached, online = open_dataset(manifest, "cached"), open_dataset(manifest, "online")
    assert (len(cached.texts), len(online.texts)) == (5, 1)
    texts = load_online_texts(online.folder, torch.device("cpu"))
    draws = [(epoch, number, 0) for epoch in range(6) for number in range(4)]
    for start in range(0, len(draws), 4):
        expected = collate([cached[draw] for draw in draws[start : start + 4]])
        found = collate(texts.fill([online[draw] for draw in draws[start : start + 4]]))
        assert found.captions == expected.captions
        torch.testing.assert_close(found.conditions.texts, expected.conditions.texts, atol=2e-3, rtol=2e-3)
        assert torch.equal(found.conditions.mask, expected.conditions.mask)
        assert torch.equal(found.latents, expected.latents)
    assert texts.num_encoded == 4  # each caption once
    with pytest.raises(ValueError, match="has no cached states"):
        LatentDataset(dataclasses.replace(online.config, text="cached", text_dropout=0.0), seed=0)[0, 0, 0]


def test_memory_of_the_cache_is_bounded(manifest, encoders_dir):
    online = open_dataset(manifest, "online")
    texts = OnlineTexts(*load_text_encoder(str(encoders_dir / "text")), max_tokens=128, cache_bytes=150)
    sample = dataclasses.replace(online[0, 0, 0], encoder_hidden_states=None)
    for text in ("song 1", "song 2", "song 1", "song 3", "song 1"):
        (filled,) = texts.fill([dataclasses.replace(sample, text=text)])
        assert filled.encoder_hidden_states.shape == (4, 8)
        assert sum(states.nbytes for states in texts._states.values()) <= 150
    assert texts.num_encoded == 3  # the one in use stays


def test_what_texts_cost_is_told_before_a_run(manifest):
    told = describe_text_costs(DataConfig(manifest=str(manifest)), 8)
    assert "about 4 clips with 1.0 texts each" in told
    gigabytes = float(told.split("data.text=cached: ")[1].split(" GB")[0])
    texts = open_dataset(manifest, "cached").texts
    tokens = sum(len(texts.read(f"song {i} " * (i + 1))) for i in range(4))
    assert gigabytes == pytest.approx(tokens * texts.read("").shape[1] * 2 / 1e9, rel=0.02)
    assert "Advised: cached" in told
    assert "that is there" in describe_text_costs(DataConfig(), 8)


def test_a_training_that_encodes_texts_learns_what_one_with_cached_states_does(
    write_latents, encoders_dir, fresh_accelerator, tmp_path
):
    name = str(encoders_dir / "text")
    tokenizer, encoder = load_text_encoder(name)
    texts = ["", *(f"song {i}" for i in range(4))]
    states = dict(zip(texts, read_states(texts, tokenizer, encoder, max_tokens=128), strict=True))
    records = [Record(id=f"{i}", path=f"{i}.wav", duration_in_s=1.0, captions=(f"song {i}",)) for i in range(4)]
    means = [torch.full((2, 16, 4), float(value)) for value in (-1.5, -0.5, 0.5, 1.5)]
    losses = {}
    for text in ("cached", "online"):
        options = dataclasses.asdict(EncodingOptions(text_encoder=name, text=text))
        write_latents(
            tmp_path / text,
            records,
            means,
            [torch.full_like(mean, 0.01) for mean in means],
            states if text == "cached" else {"": states[""]},
            options=options,
            read_by=describe_text_encoder(name, 128),
        )
        values = {
            "data": {"latents": str(tmp_path / text), "crop_in_frames": 16, "text": text, "num_workers": 1},
            "model": MODEL,
            "run": {"output_dir": str(tmp_path / f"run-{text}"), "batch_size": 4, "max_steps": 4, "log_steps": 1},
        }
        for stop in (StopAfter(2), StopAfter()):  # resumed, too
            train_qamdt.train(build(TrainConfig, values), stop)
        lines = (tmp_path / f"run-{text}" / "loss.jsonl").read_text().splitlines()
        losses[text] = [json.loads(line)["loss"] for line in lines]
    assert len(losses["online"]) == 4
    assert losses["online"] == pytest.approx(losses["cached"], rel=1e-2)
