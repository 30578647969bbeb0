import copy
import dataclasses
import json
import math
import multiprocessing
import random
import re
import resource
import shutil
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

import train_qamdt
from qamdt.files import write_json
from qamdt.latent_folder import TextReader
from qamdt.manifest import Record
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.settings import build
from qamdt.training.checkpoints import list_checkpoints
from qamdt.training.config import TrainConfig
from qamdt.training.loss import NoiseSchedule, diffusion_loss, make_scheduler
from qamdt.training.network import build_model
from qamdt.training.optimizers import build_optimizers, learning_rate_factor, split_parameters
from tests.tiny_training import MODEL, StopAfter


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def latents(tmp_path_factory, write_latents):
    """Four clips without quality scores, each a constant that its caption tells."""
    folder = tmp_path_factory.mktemp("latents")
    records = [Record(id=f"{i}", path=f"{i}.wav", duration_in_s=1.0, captions=(f"song {i}",)) for i in range(4)]
    means = [torch.full((2, 16, 4), float(value)) for value in (-1.5, -0.5, 0.5, 1.5)]
    stds = [torch.full_like(mean, 0.01) for mean in means]
    generator = torch.Generator().manual_seed(0)
    texts = {text: torch.randn(3, 8, generator=generator) for text in ("", *(f"song {i}" for i in range(4)))}
    write_latents(folder, records, means, stds, texts)
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


def read_losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "loss.jsonl").read_text().splitlines()]


def assert_same_run(first, second, step=6):
    assert read_losses(first) == read_losses(second)
    for name in ("resume/model.safetensors", "transformer/diffusion_pytorch_model.safetensors"):
        name = f"checkpoints/step-{step:08d}/{name}"
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


def test_three_steps_are_those_of_plain_torch(latents, tmp_path, monkeypatch):
    """Rates, clipping, weight decay and averages written out; what the loss is, other tests say."""
    begun, heard = [], []

    def build_and_keep(config):
        model = build_model(config)
        begun.append(copy.deepcopy(model))
        return model

    def listen(transformer, batch, draws, *arguments, **options):
        heard.append((batch, draws))
        return diffusion_loss(transformer, batch, draws, *arguments, **options)

    monkeypatch.setattr(train_qamdt, "build_model", build_and_keep)
    monkeypatch.setattr(train_qamdt, "diffusion_loss", listen)
    optim = {
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "schedule": "cosine",
        "weight_decay": 0.3,
        "max_grad_norm": 0.05,
    }
    config = make_config(
        latents,
        tmp_path,
        run={"max_steps": 3, "mixed_precision": "no"},
        optim=optim | {"ema_decay": 0.25, "beta1": 0.8, "beta2": 0.95, "optimizer": "adamw"},
        loss={"passes": "full"},
    )
    train_qamdt.train(config, StopAfter())

    model, schedule = begun[0].train(), NoiseSchedule(config.loss)
    weights = dict(model.named_parameters())
    averages = {name: weight.detach().clone() for name, weight in weights.items()}
    moments = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in weights.items()}
    assert len(heard) == 3
    for step, (batch, draws) in enumerate(heard):
        loss = diffusion_loss(model, batch, draws, schedule, config.loss, model_config=model.config, is_masked=False)
        model.zero_grad()
        loss.backward()
        gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        assert norm > 0.05
        rate = 0.01 * min(1, (step + 1) / 2) * 0.5 * (1 + math.cos(math.pi * step / 3))
        with torch.no_grad():
            for name, gradient in gradients.items():
                gradient = gradient * 0.05 / norm
                is_block_matrix = ("blocks." in name or "side_interpolator." in name) and gradient.ndim == 2
                if is_block_matrix and "table" not in name:
                    weights[name] *= 1 - rate * 0.3
                first, second = moments[name]
                first.lerp_(gradient, 0.2)
                second.lerp_(gradient.square(), 0.05)
                unbiased = second / (1 - 0.95 ** (step + 1))
                weights[name] -= rate * first / (1 - 0.8 ** (step + 1)) / (unbiased.sqrt() + 1e-8)
            decay = min(0.25, (2 + step) / (11 + step))
            for name, average in averages.items():
                average.lerp_(weights[name], 1 - decay)
    checkpoint = tmp_path / "checkpoints" / "step-00000003"
    for file, expected in (("resume/model", weights), ("transformer/diffusion_pytorch_model", averages)):
        for name, found in load_file(checkpoint / f"{file}.safetensors").items():
            torch.testing.assert_close(found, expected[name].detach(), atol=2e-4, rtol=1e-3, msg=name)


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
        run={"max_steps": 300, "batch_size": 16},
        optim={
            "learning_rate": 0.005,
            "warmup_steps": 10,
            "schedule": "cosine",
            "optimizer": "muon",
            "ema_decay": 0.9,
        },
        loss={"passes": "full", "min_snr_gamma": None},
    )
    train_qamdt.train(config, StopAfter())
    losses = read_losses(tmp_path / "run")
    assert sum(losses[-20:]) / 20 < losses[0] / 10

    # What is generated for a caption is the clip that has it; clips lie 1.0 apart, noise is 1.0 wide.
    transformer = QAMDTTransformer2DModel.from_pretrained(tmp_path / "run" / "export" / "transformer")
    scheduler = make_scheduler(config.loss)
    texts = torch.stack([TextReader(latents).read(f"song {i}") for i in range(4)])
    clips = torch.tensor([-1.5, -0.5, 0.5, 1.5]).view(4, 1, 1, 1)
    generated = sample(transformer, scheduler, texts, torch.randn(4, 2, 16, 4, generator=torch.manual_seed(0)))
    distance = (generated - clips).square().mean(dim=(1, 2, 3)).sqrt()
    assert distance.max() < 0.45


@torch.no_grad()
def sample(transformer, scheduler, texts, latents, num_steps=25):
    scheduler.set_timesteps(num_steps)
    for timestep in scheduler.timesteps:
        output = transformer(latents, timestep.expand(len(latents)), texts, return_dict=False)[0]
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents


def start_process(config, prepare=lambda: None):
    """Begins a run in a process of its own."""

    def run():
        torch.set_num_threads(1)
        prepare()
        train_qamdt.train(config, StopAfter())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def save_slowly():
    """Makes a checkpoint take so long that a test on a busy machine sees it being written."""

    def write_slowly(path, values):
        time.sleep(0.3)
        write_json(path, values)

    train_qamdt.write_json = write_slowly  # of a process of its own


def count_lines(path):
    return path.read_text().count("\n") if path.is_file() else 0


def test_ten_kills_at_random_moments_leave_no_trace(latents, tmp_path):
    """Every other kill hits while a checkpoint is written."""
    run = {"max_steps": 60, "checkpoint_steps": 2, "log_steps": 3}
    straight = start_process(make_config(latents, tmp_path / "straight", run=run))
    config, folder = make_config(latents, tmp_path / "killed", run=run), tmp_path / "killed"
    straight.join()
    assert straight.exitcode == 0

    moments, interrupted_saves = random.Random(0), 0
    for kill in range(10):
        process, lines_before = start_process(config, save_slowly), count_lines(folder / "loss.jsonl")
        while process.is_alive():
            is_saving = any(folder.glob("checkpoints/.step-*.tmp"))
            if is_saving if kill % 2 else count_lines(folder / "loss.jsonl") > lines_before:
                break
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        assert process.is_alive(), "the run ended before it was killed"
        process.kill()
        process.join()
        interrupted_saves += any(folder.glob("checkpoints/.step-*.tmp"))
    assert interrupted_saves > 0
    process = start_process(config)
    process.join()
    assert process.exitcode == 0
    assert_same_run(tmp_path / "straight", folder, step=60)


def test_a_full_disk_loses_nothing(latents, tmp_path):
    config = make_config(latents, tmp_path, run={"checkpoint_steps": 2})
    state = train_qamdt.train(config, StopAfter(2))
    size = max(file.stat().st_size for file in (tmp_path / "checkpoints").rglob("*"))

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    process = start_process(config, limit_files)
    process.join()
    assert process.exitcode == 1
    assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000002"]
    assert train_qamdt.train(config, StopAfter())["step"] == 6
    assert state["step"] == 2


def test_a_damaged_checkpoint_does_not_push_out_whole_ones(latents, tmp_path):
    config = make_config(latents, tmp_path, run={"checkpoint_steps": 2, "num_checkpoints": 1})
    train_qamdt.train(config, StopAfter(4))
    (newest,) = list_checkpoints(tmp_path / "checkpoints")
    shutil.copytree(newest, newest.with_name("step-00000099"))
    (newest.with_name("step-00000099") / "state.json").write_text("{")
    train_qamdt.train(config, StopAfter())
    assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000006"]
    assert (tmp_path / "checkpoints" / "damaged-step-00000099").is_dir()


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


def test_a_dry_run_prints_settings_and_size(capsys):
    assert train_qamdt.main(["--config", "mini", "--dry-run", "run.batch_size=7"]) == 0
    output = capsys.readouterr().out
    assert "batch_size: 7" in output
    assert "M parameters" in output


def test_adapters_of_the_published_network_fit_into_twelve_gigabytes(capsys):
    """The estimate; parameters are counted, and one block is run."""
    overrides = ["run.batch_size=1", "lora.rank=16", "run.init_from=somewhere"]
    assert train_qamdt.main(["--config", "base", "--dry-run", *overrides]) == 0
    output = capsys.readouterr().out
    together = float(re.search(r"together +([\d.]+) GiB", output)[1])
    assert 690.14e6 * 4 / 2**30 < together < 12 * 1e9 / 2**30
    assert "690.14 M parameters, 13.90 M of them train; 1025 tokens a crop." in output
    assert re.search(r"About [\d.e-]+ tokens", output)


def test_eight_bit_moments_train_and_resume(latents, tmp_path):
    pytest.importorskip("bitsandbytes")
    config = make_config(latents, tmp_path, optim={"optimizer": "adamw8bit", "warmup_steps": 0})
    train_qamdt.train(config, StopAfter(3))
    assert train_qamdt.train(config, StopAfter())["step"] == 6


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
