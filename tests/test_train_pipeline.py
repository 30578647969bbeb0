"""What a run writes is what the pipeline opens: whole networks, adapters, flows; and previews come out of it."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import train_qamdt
from pipelines.assemble import assemble
from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.files import write_json
from qamdt.keyed_rows import digest_weights
from qamdt.latent_folder import INDEX_NAME
from qamdt.manifest import Record
from qamdt.quality import PUBLISHED_QUALITY_STATS
from qamdt.settings import build
from qamdt.training import post_hoc_ema
from qamdt.training.config import TrainConfig
from tests.tiny_training import StopAfter


pytestmark = pytest.mark.usefixtures("fresh_accelerator")
PREVIEW = {"prompts": ["piano", "calm drums"], "steps": 2, "audio_length_in_s": 0.1, "num_inference_steps": 2}


@pytest.fixture
def latents(tmp_path, pipe_dir, write_latents):
    """Four clips as the tiny pipeline's autoencoder might have encoded them."""
    folder = tmp_path / "latents"
    generator = torch.Generator().manual_seed(0)
    records = [Record(id=f"{i}", path=f"{i}.wav", duration_in_s=1.0, captions=("piano",)) for i in range(4)]
    means = [torch.randn(4, 16, 4, generator=generator) for _ in records]
    write_latents(
        folder,
        records,
        means,
        [mean.abs() / 10 for mean in means],
        {text: torch.randn(3, 16, generator=generator) for text in ("", "piano")},
        scaling_factor=0.5,
        vae_scaling_factor=0.5,
        vae_sha256=digest_weights(pipe_dir / "vae"),
        quality=PUBLISHED_QUALITY_STATS.to_dict(),
    )
    return folder


def make_config(latents, pipe_dir, output_dir, run=None, **groups):
    values = {
        "data": {"latents": str(latents), "crop_in_frames": 16},
        "optim": {"learning_rate": 0.01, "warmup_steps": 0, "ema_decay": 0.5},
        "run": {
            "output_dir": str(output_dir),
            "init_from": str(pipe_dir),
            "pipeline": str(pipe_dir),
            "batch_size": 2,
            "max_steps": 4,
            "log_steps": 1,
            **(run or {}),
        },
        **groups,
    }
    return build(TrainConfig, values)


def play(pipe):
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    return pipe(
        PREVIEW["prompts"], audio_length_in_s=0.1, num_inference_steps=2, generator=generators, output_type="np"
    ).audios


def test_previews_are_what_the_checkpoint_plays(latents, pipe_dir, tmp_path):
    config = make_config(latents, pipe_dir, tmp_path / "run", {"log_with": "tensorboard"}, preview=PREVIEW)
    train_qamdt.train(config, StopAfter())
    for step in (2, 4):
        waveforms = play(QAMDTPipeline.from_pretrained(tmp_path / "run" / "checkpoints" / f"step-{step:08d}"))
        folder = tmp_path / "run" / "previews" / f"step-{step:08d}"
        heard = [soundfile.read(folder / f"{number:02d}.wav")[0] for number in range(2)]
        np.testing.assert_allclose(heard, waveforms.clip(-1, 1), atol=1e-4)
        assert (folder / "spectrograms.png").stat().st_size > 1000
    assert list((tmp_path / "run" / "export").rglob("optimizer*")) == []
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    size = sum(
        tensor.numel()
        for tensor in load_file(next((tmp_path / "run" / "export").glob("transformer/*.safetensors"))).values()
    )
    assert f"| `transformer` | `QAMDTTransformer2DModel` | {size / 1e6:.2f} M |" in card
    assert json.loads((tmp_path / "run" / "export" / "gms.json").read_text())["id"] == "run"

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Audio("preview/00 piano")] == [2, 4]
    assert [event.step for event in events.Images("preview/spectrograms")] == [2, 4]

    quiet = dataclasses.replace(config, run=dataclasses.replace(config.run, output_dir=str(tmp_path / "quiet")))
    train_qamdt.train(dataclasses.replace(quiet, preview=type(config.preview)()), StopAfter())
    weights = "checkpoints/step-00000004/resume/model.safetensors"
    watched, unwatched = load_file(tmp_path / "run" / weights), load_file(tmp_path / "quiet" / weights)
    assert all(torch.equal(tensor, unwatched[name]) for name, tensor in watched.items())


def test_previews_without_matplotlib_are_refused_before_the_training(latents, pipe_dir, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    config = make_config(latents, pipe_dir, tmp_path / "run", preview=PREVIEW)
    with pytest.raises(ImportError, match=r"`preview.prompts` needs matplotlib; install it with"):
        train_qamdt.train(config, StopAfter())
    assert not (tmp_path / "run" / "loss.jsonl").exists()


def test_an_adapter_is_resumed_exactly_and_read_by_the_pipeline(latents, pipe_dir, tmp_path):
    lora = {"rank": 2, "dropout": 0.1}
    config = make_config(latents, pipe_dir, tmp_path / "run", lora=lora, preview=PREVIEW)
    train_qamdt.train(config, StopAfter(2))
    torch.manual_seed(12345)
    train_qamdt.train(config, StopAfter())
    straight = make_config(latents, pipe_dir, tmp_path / "straight", lora=lora)
    train_qamdt.train(straight, StopAfter())
    name = "checkpoints/step-00000004/resume/model.safetensors"
    trained, expected = load_file(tmp_path / "run" / name), load_file(tmp_path / "straight" / name)
    assert trained
    assert all("lora_" in key for key in trained)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in trained.items())

    pipe = QAMDTPipeline.from_pretrained(pipe_dir)
    plain = play(pipe)
    pipe.load_lora_weights(tmp_path / "run" / "export")
    adapted = play(pipe)
    assert np.abs(adapted - plain).max() > 1e-4
    heard = soundfile.read(tmp_path / "run" / "previews" / "step-00000004" / "00.wav")[0]
    np.testing.assert_allclose(heard, adapted[0].clip(-1, 1), atol=1e-4)


def test_an_average_made_after_the_training_is_opened_by_the_pipeline_and_assembled(latents, pipe_dir, tmp_path):
    optim = {"learning_rate": 0.01, "warmup_steps": 0, "ema_snapshot_lengths": [0.05, 0.1], "ema_snapshot_steps": 2}
    train_qamdt.train(make_config(latents, pipe_dir, tmp_path / "run", optim=optim), StopAfter())
    out = tmp_path / "out"
    assert post_hoc_ema.main([str(tmp_path / "run"), "--length", "0.08", "--out", str(out)]) == 0
    played = play(QAMDTPipeline.from_pretrained(out))
    assert np.abs(played - play(QAMDTPipeline.from_pretrained(tmp_path / "run" / "export"))).max() > 1e-4

    assembled = tmp_path / "assembled"
    assemble(pipe_dir / "vae", pipe_dir / "vocoder", out, assembled, torch.float32)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    expected = load_file(out / weights)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(assembled / weights).items())


def test_a_flow_plays_through_the_pipeline_with_several_samplers(latents, pipe_dir, tmp_path):
    from pipelines.samplers import make_scheduler

    config = make_config(latents, pipe_dir, tmp_path, loss={"prediction_type": "flow_prediction", "flow_shift": 2.0})
    train_qamdt.train(config, StopAfter())
    pipe = QAMDTPipeline.from_pretrained(tmp_path / "export")
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert np.isfinite(play(pipe)).all()
    for name in ("dpm++", "unipc", "euler"):
        pipe.scheduler = make_scheduler(name, pipe.scheduler)
        assert np.isfinite(play(pipe)).all()
    with pytest.raises(ValueError, match="for a model that was trained as a flow, got 'ddim'"):
        make_scheduler("ddim", pipe.scheduler)


def test_latents_of_another_autoencoder_or_size_are_refused(latents, pipe_dir, tmp_path):
    index = json.loads((latents / INDEX_NAME).read_text())
    write_json(latents / INDEX_NAME, index | {"vae_sha256": "another"})
    with pytest.raises(ValueError, match="were made by another autoencoder"):
        train_qamdt.train(make_config(latents, pipe_dir, tmp_path / "run"), StopAfter())
    config = make_config(latents, pipe_dir, tmp_path / "run", model={"in_channels": 8, "sample_size": [16, 4]})
    with pytest.raises(ValueError, match="has `latent_channels` 4, but the network's `in_channels` is 8"):
        train_qamdt.train(config, StopAfter())
