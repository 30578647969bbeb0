"""Two processes, started as `torchrun` starts them, compute what one does."""

import json
from collections import Counter

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL

import train_qamdt
from data_prep.encode_latents import main as encode_latents
from qamdt.audio import write_audio
from qamdt.latent_folder import LatentReader, TextReader, open_folder
from qamdt.manifest import Record, write_manifest
from qamdt.training.config import DataConfig
from qamdt.training.dataset import LatentDataset, collate
from qamdt.training.sampling import EpochSampler
from tests.ranks import run_ranks
from tests.tiny_training import MODEL


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def latents(tmp_path, write_noise):
    """Twelve clips of two lengths in three shards."""
    write_noise(tmp_path / "latents", [16 if i % 3 else 8 for i in range(12)], clips_per_shard=4)
    return tmp_path / "latents"


def write_config(path, latents, output_dir, batch_size):
    values = {
        "data": {"latents": str(latents), "crop_in_frames": [8, 16]},
        "model": MODEL,
        # With a decay of 0 the first moment of AdamW is the gradient.
        "optim": {"learning_rate": 0.001, "warmup_steps": 0, "beta1": 0.0, "max_grad_norm": 1e9},
        "loss": {"passes": "both"},
        "run": {
            "output_dir": str(output_dir),
            "batch_size": batch_size,
            "max_steps": 2,
            "checkpoint_steps": 1,
            "log_steps": 1,
        },
    }
    path.write_text(yaml.safe_dump(values))
    return str(path)


def make_corpus(folder):
    """Five short clips and an autoencoder with random weights."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    records = []
    for i in range(5):
        write_audio(folder / f"{i}.wav", torch.randn(5120, generator=generator).clamp(-1, 1) / 4, 16_000)
        records.append(Record(id=f"{i}", path=f"{i}.wav", duration_in_s=0.32, captions=(f"song {i}",)))
    write_manifest(folder / "manifest.jsonl", records)
    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
    ).save_pretrained(folder / "vae")
    return ["--manifest", str(folder / "manifest.jsonl"), "--vae", str(folder / "vae"), "--clips-per-shard", "2"]


def test_two_ranks_train_and_encode_as_one_does(latents, tmp_path):
    encode = make_corpus(tmp_path / "corpus")
    commands = [
        (encode_latents, [*encode, "--out", str(tmp_path / "by_two")]),
        (train_qamdt.main, ["--config", write_config(tmp_path / "two.yaml", latents, tmp_path / "two", 3)]),
    ]
    AcceleratorState._reset_state(reset_partial_state=True)

    def run_all():
        for main, arguments in commands:
            assert main(arguments) == 0, arguments

    run_ranks(run_all)
    assert encode_latents([*encode, "--out", str(tmp_path / "by_one")]) == 0
    config = write_config(tmp_path / "one.yaml", latents, tmp_path / "one", 6)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train_qamdt.main(["--config", config]) == 0

    # Same gradients, same weights, same loss.
    for step in (1, 2):
        name = f"checkpoints/step-{step:08d}/resume"
        alone, together = (
            torch.load(tmp_path / run / name / "optimizer.bin", weights_only=True)["state"] for run in ("one", "two")
        )
        assert alone.keys() == together.keys()
        for number, values in alone.items():
            torch.testing.assert_close(values["exp_avg"], together[number]["exp_avg"], atol=1e-5, rtol=1e-5)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "loss.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    # Same latents and texts, though in other shards.
    one, two = LatentReader(tmp_path / "by_one"), LatentReader(tmp_path / "by_two")
    places = {record.id: number for number, record in enumerate(two.records)}
    assert sorted(places) == sorted(record.id for record in one.records)
    for number, record in enumerate(one.records):
        alone, shared = one.read(number, 0, 4), two.read(places[record.id], 0, 4)
        torch.testing.assert_close(alone, shared)
    texts = TextReader(tmp_path / "by_one"), TextReader(tmp_path / "by_two")
    torch.testing.assert_close(texts[0].read("song 3"), texts[1].read("song 3"))
    assert open_folder(tmp_path / "by_two").index["num_clips"] == 5


@pytest.mark.parametrize("where", ["disk", "url"])
def test_no_clip_is_lost_or_doubled_over_ranks_workers_and_epochs(latents, tmp_path, where):
    folder = str(latents) if where == "disk" else f"file://{latents}"
    config = DataConfig(latents=folder, crop_in_frames=8, window_in_shards=1, cache_dir=str(tmp_path / "cache"))
    counts = Counter()
    for rank in range(2):
        dataset = LatentDataset(config, seed=0)
        sampler = EpochSampler(
            dataset.buckets(),
            batch_size=2,
            seed=0,
            shards=dataset.shards(),
            window_in_shards=1,
            rank=rank,
            num_ranks=2,
        )
        loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=2)
        batches = iter(loader)
        counts.update(clip for _ in range(6) for clip in next(batches).ids)
        del batches
    assert counts == {f"{i}": 2 for i in range(12)}


def test_shards_of_a_url_are_fetched_when_they_are_needed(latents, tmp_path):
    config = DataConfig(latents=f"file://{latents}", crop_in_frames=8, cache_dir=str(tmp_path / "cache"))
    dataset, local = (
        LatentDataset(config, seed=0),
        LatentDataset(DataConfig(latents=str(latents), crop_in_frames=8), seed=0),
    )
    assert not list(tmp_path.glob("cache/*/latents-*.safetensors"))
    for number in range(4):
        torch.testing.assert_close(dataset[0, number, 0].latents, local[0, number, 0].latents)
    assert len(list(tmp_path.glob("cache/*/latents-*.safetensors"))) == 1
    with pytest.raises(FileNotFoundError, match=r"there is no index.json in 'file:///nowhere'"):
        open_folder("file:///nowhere", tmp_path / "cache")
