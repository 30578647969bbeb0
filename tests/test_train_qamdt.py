import dataclasses
import json
import math
import shutil

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train_qamdt
from qamdt.checkpoints import list_checkpoints
from qamdt.config import TrainConfig, build
from qamdt.manifest import Record
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.shards import INDEX_NAME, write_json, write_latent_shard, write_text_shard
from qamdt.training import build_optimizers, learning_rate_factor, split_parameters


MODEL = {
    "sample_size": [16, 4],
    "patch_size": [2, 4],
    "in_channels": 2,
    "num_layers": 3,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 8,
    "use_frame_quality": True,
    "use_global_quality": True,
    "pool_text": True,
}


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Four clips without quality scores, each a constant that its caption tells."""
    folder = tmp_path_factory.mktemp("latents")
    records = [Record(id=f"{i}", path=f"{i}.wav", duration_in_s=1.0, captions=(f"song {i}",)) for i in range(4)]
    means = [torch.full((2, 16, 4), float(value)) for value in (-1.5, -0.5, 0.5, 1.5)]
    stds = [torch.full_like(mean, 0.01) for mean in means]
    write_latent_shard(folder, records, means, stds, [torch.full((16,), math.nan)] * 4)
    texts = ["", *(f"song {i}" for i in range(4))]
    generator = torch.Generator().manual_seed(0)
    write_text_shard(folder, texts, [torch.randn(3, 8, generator=generator) for _ in texts])
    write_json(
        folder / INDEX_NAME, {"scaling_factor": 1.0, "vae_scaling_factor": 1.0, "quality": None, "max_captions": None}
    )
    return folder


def make_config(latents, output_dir, run=None, **groups):
    values = {
        "data": {"latents": str(latents), "crop_in_frames": 16},
        "model": MODEL,
        "optim": {"learning_rate": 0.003, "warmup_steps": 2, "ema_decay": 0.9},
        "run": {"output_dir": str(output_dir), "batch_size": 4, "max_steps": 6, "log_steps": 1, **(run or {})},
        **groups,
    }
    return build(TrainConfig, values)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Lets each test choose its precision, which accelerate fixes once a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class StopAfter:
    """Asks a run to stop after so many updates, as a signal would."""

    def __init__(self, num_steps=math.inf):
        self.num_steps = num_steps

    @property
    def is_requested(self):
        self.num_steps -= 1
        return self.num_steps < 0


def read_losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "loss.jsonl").read_text().splitlines()]


def assert_same_run(first, second):
    assert read_losses(first) == read_losses(second)
    for name in ("resume/model.safetensors", "transformer/diffusion_pytorch_model.safetensors"):
        name = f"checkpoints/step-00000006/{name}"
        tensors, others = load_file(first / name), load_file(second / name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_a_straight_one_exactly(latents, tmp_path, optimizer):
    optim = {"learning_rate": 0.003, "warmup_steps": 2, "schedule": "cosine", "optimizer": optimizer}
    loss = {"passes": "both"}
    train_qamdt.train(make_config(latents, tmp_path / "straight", optim=optim, loss=loss), StopAfter())
    resumed = make_config(latents, tmp_path / "resumed", optim=optim, loss=loss)
    state = train_qamdt.train(resumed, StopAfter(2))
    assert state["step"] == 2
    torch.manual_seed(12345)
    train_qamdt.train(resumed, StopAfter())
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(latents, tmp_path, capsys):
    train_qamdt.train(make_config(latents, tmp_path / "straight"), StopAfter())
    config = make_config(latents, tmp_path / "run", run={"checkpoint_steps": 2})
    train_qamdt.train(config, StopAfter(4))
    newest, older = list_checkpoints(tmp_path / "run" / "checkpoints")
    weights = newest / "resume" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    shutil.copytree(older, tmp_path / "run" / "checkpoints" / ".step-00000006.tmp")  # as a kill while saving leaves it
    train_qamdt.train(config, StopAfter())
    messages = capsys.readouterr().err
    assert f"{newest} is damaged and passed over: resume/model.safetensors is not what was written." in messages
    assert f"Resuming from {older}." in messages
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_few_clips_can_be_learnt_by_heart(latents, tmp_path):
    config = make_config(
        latents,
        tmp_path / "run",
        run={"max_steps": 250, "batch_size": 16},
        optim={"learning_rate": 0.005, "warmup_steps": 10, "schedule": "cosine", "optimizer": "muon"},
        loss={"passes": "full"},
    )
    train_qamdt.train(config, StopAfter())
    losses = read_losses(tmp_path / "run")
    assert sum(losses[-20:]) / 20 < losses[0] / 10


def test_exported_weights_open_and_are_the_averages(latents, tmp_path):
    train_qamdt.train(make_config(latents, tmp_path), StopAfter())
    transformer = QAMDTTransformer2DModel.from_pretrained(tmp_path / "export" / "transformer")
    weights = "step-00000006/transformer/diffusion_pytorch_model.safetensors"
    averages = load_file(tmp_path / "checkpoints" / weights)
    state_dict = transformer.state_dict()
    assert all(torch.equal(state_dict[name], average) for name, average in averages.items())
    scheduler = json.loads((tmp_path / "export" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"] == MODEL


def test_old_checkpoints_are_removed(latents, tmp_path):
    train_qamdt.train(make_config(latents, tmp_path, run={"checkpoint_steps": 1, "num_checkpoints": 3}), StopAfter())
    names = [checkpoint.name for checkpoint in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000006", "step-00000005", "step-00000004"]


def test_accumulated_batches_give_the_gradient_of_one_large_batch(latents, tmp_path):
    for name, run in (("large", {"batch_size": 4}), ("small", {"batch_size": 2, "gradient_accumulation_steps": 2})):
        config = make_config(latents, tmp_path / name, run={**run, "max_steps": 3}, loss={"passes": "full"})
        train_qamdt.train(config, StopAfter())
    assert read_losses(tmp_path / "large") == pytest.approx(read_losses(tmp_path / "small"), rel=1e-5)


def test_minutes_end_a_run(latents, tmp_path):
    config = make_config(latents, tmp_path, run={"max_steps": None, "max_minutes": 0.01})
    state = train_qamdt.train(config, StopAfter())
    assert 0.01 <= state["minutes"] < 0.2


def test_bf16_and_gradient_checkpointing_train(latents, tmp_path):
    config = make_config(latents, tmp_path, run={"mixed_precision": "bf16", "gradient_checkpointing": True})
    train_qamdt.train(config, StopAfter())
    assert all(math.isfinite(loss) for loss in read_losses(tmp_path))


def test_another_scaling_of_the_latents_is_refused_on_resumption(latents, tmp_path):
    config = make_config(latents, tmp_path)
    train_qamdt.train(config, StopAfter(1))
    data = dataclasses.replace(config.data, scaling_factor=2.0)
    with pytest.raises(ValueError, match=r"scaled by 1\.0, now `data.latents` says 2\.0"):
        train_qamdt.train(dataclasses.replace(config, data=data), StopAfter())


def test_a_dry_run_prints_settings_and_size(capsys):
    assert train_qamdt.main(["--config", "mini", "--dry-run", "run.batch_size=7"]) == 0
    output = capsys.readouterr().out
    assert "batch_size: 7" in output
    assert "M parameters" in output


def test_wrong_settings_are_told_in_one_line(capsys):
    assert train_qamdt.main(["--config", "mini", "run.batchsize=7"]) == 2
    assert "error: " in capsys.readouterr().err


def test_schedules():
    config = make_config("none", "none").optim
    config = dataclasses.replace(config, warmup_steps=10, decay_share=0.2)

    def factors(schedule, *points):
        return [
            round(learning_rate_factor(dataclasses.replace(config, schedule=schedule), step, progress), 3)
            for step, progress in points
        ]

    assert factors("constant", (0, 0.0), (4, 0.1), (50, 0.9)) == [0.1, 0.5, 1.0]
    assert factors("cosine", (50, 0.0), (50, 0.5), (50, 1.0)) == [1.0, 0.5, 0.0]
    assert factors("trapezoid", (50, 0.5), (50, 0.8), (50, 0.9), (50, 1.0)) == [1.0, 1.0, 0.5, 0.0]


def test_every_weight_is_updated_by_one_optimizer():
    model = QAMDTTransformer2DModel(**MODEL)
    config = make_config("none", "none").optim
    for optimizer in ("adamw", "muon"):
        optimizers = build_optimizers(model, dataclasses.replace(config, optimizer=optimizer))
        updated = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        assert sorted(map(id, updated)) == sorted(map(id, model.parameters()))
    hidden, _ = split_parameters(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in hidden} == {"transformer_blocks", "side_interpolator"}
