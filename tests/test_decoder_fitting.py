"""Training of the autoencoder and the vocoder, on two short clips."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from qamdt.audio import write_audio
from qamdt.decoders import train_vae, train_vocoder
from qamdt.decoders.fitting import RandomCrops
from qamdt.files import append_json_line
from qamdt.manifest import Record, read_manifest, write_manifest


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def manifest(tmp_path):
    records = []
    for number in range(2):
        time_in_s = torch.arange(16_000) / 16_000
        waveform = 0.3 * torch.sin(2 * torch.pi * 220 * (number + 1) * time_in_s) * (-3 * time_in_s).exp()
        write_audio(tmp_path / f"{number}.flac", waveform, 16_000)
        records.append(Record(id=str(number), path=f"{number}.flac", duration_in_s=1.0))
    write_manifest(tmp_path / "manifest.jsonl", records)
    return tmp_path / "manifest.jsonl"


def train(module, manifest, output_dir, *arguments: str) -> list[dict]:
    size = ["--dim=16", "--num-layers=1"] if module is train_vocoder else ["--channels", "8", "8", "8", "8"]
    options = [f"--manifest={manifest}", f"--output-dir={output_dir}", "--batch-size=2", "--crop-in-s=0.32"]
    module.main([*options, *size, *arguments])
    return [json.loads(line) for line in (output_dir / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("module", "name"), [(train_vae, "vae"), (train_vocoder, "vocoder")])
def test_a_run_stopped_after_each_step_equals_a_straight_one(module, name, manifest, tmp_path):
    train(module, manifest, tmp_path / "straight", "--num-steps=3")
    for _ in range(3):
        train(module, manifest, tmp_path / "stopped", "--num-steps=3", "--max-minutes=0")
    straight, stopped = (load_file(tmp_path / run / name / WEIGHTS) for run in ("straight", "stopped"))
    assert straight.keys() == stopped.keys()
    assert all(torch.equal(straight[key], stopped[key]) for key in straight)


@pytest.mark.parametrize("module", [train_vae, train_vocoder])
def test_the_loss_falls(module, manifest, tmp_path):
    losses = train(module, manifest, tmp_path / "run", "--num-steps=41", "--learning-rate=0.01")
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]


def test_a_frozen_encoder_keeps_its_latents(manifest, tmp_path):
    train(train_vae, manifest, tmp_path / "first", "--num-steps=1")
    start = tmp_path / "first" / "vae"
    train(train_vae, manifest, tmp_path / "second", f"--init={start}", "--freeze-encoder", "--num-steps=2")
    before, after = load_file(start / WEIGHTS), load_file(tmp_path / "second" / "vae" / WEIGHTS)
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith(("encoder.", "quant_conv.")))
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("decoder."))


def test_the_vocoder_trains_behind_an_autoencoder(manifest, tmp_path):
    train(train_vae, manifest, tmp_path / "first", "--num-steps=1")
    autoencoder = tmp_path / "first" / "vae"
    before = load_file(autoencoder / WEIGHTS)
    losses = train(train_vocoder, manifest, tmp_path / "second", f"--vae={autoencoder}", "--num-steps=2")
    assert losses[-1]["loss"] > 0
    assert all(torch.equal(before[key], load_file(autoencoder / WEIGHTS)[key]) for key in before)


def test_a_run_goes_on_with_its_own_settings_and_sound_alone(manifest, tmp_path):
    run = tmp_path / "run"
    train(train_vae, manifest, run, "--num-steps=2", "--max-minutes=0")
    with pytest.raises(ValueError, match="`kl_weight` was 0.0001 and is now 0.5; give another `--output-dir`"):
        train(train_vae, manifest, run, "--num-steps=2", "--kl-weight=0.5")
    records = read_manifest(manifest)
    write_manifest(manifest, [replace(record, captions=("said later",)) for record in records])
    os.utime(tmp_path / "0.flac", ns=(0, 0))
    assert len(train(train_vae, manifest, run, "--num-steps=2")) == 2
    write_audio(tmp_path / "0.flac", torch.rand(16_000), 16_000)
    with pytest.raises(ValueError, match="`clips` was"):
        train(train_vae, manifest, run, "--num-steps=3")


def test_what_a_killed_run_logged_after_its_checkpoint_is_logged_once(manifest, tmp_path):
    train(train_vae, manifest, tmp_path / "run", "--num-steps=3", "--max-minutes=0")
    append_json_line(tmp_path / "run" / "losses.jsonl", {"step": 2, "loss": 9.0})
    losses = train(train_vae, manifest, tmp_path / "run", "--num-steps=3")
    assert [line["step"] for line in losses] == [0, 2]
    assert losses[1]["loss"] != 9.0


def test_clips_that_are_too_short_are_named(manifest):
    with pytest.raises(ValueError, match="has no 'train' clip of 2.0 s or more"):
        RandomCrops(manifest, batch_size=1, crop_in_s=2.0)
