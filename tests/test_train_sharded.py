"""Two processes that share weights or optimizer, launched with the files that ship, train as one that has all."""

import importlib.util
import json
import time
from pathlib import Path

import accelerate.accelerator
import pytest
import torch
import yaml
from accelerate.commands import launch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file

import qamdt.models.transformer_qamdt as network
import train_qamdt
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from tests.ranks import run_ranks
from tests.tiny_training import MODEL


ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("fresh_accelerator")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def config(tmp_path, write_noise):
    """The settings of a run over twelve clips, as a file."""
    write_noise(tmp_path / "latents", [16] * 12)
    values = {
        "data": {"latents": str(tmp_path / "latents"), "crop_in_frames": 16},
        "model": MODEL,
        "optim": {
            "learning_rate": 0.001,
            "warmup_steps": 0,
            "max_grad_norm": 0.05,
            "ema_decay": 0.9,
            "ema_snapshot_lengths": [0.2],
            "ema_snapshot_steps": 4,
        },
        "run": {"output_dir": "", "batch_size": 3, "max_steps": 4, "checkpoint_steps": 2, "log_steps": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "config.yaml")


def launcher_environment(config_file):
    """What `accelerate launch` tells its processes with a file of settings that ships."""
    arguments = ["--config_file", str(ROOT / "configs/accelerate" / config_file), "--num_processes", "2"]
    parsed, *_ = launch._validate_launch_command(
        launch.launch_command_parser().parse_args([*arguments, "--main_process_port", "0", "train_qamdt.py"])
    )
    if parsed.use_deepspeed:
        return prepare_deepspeed_cmd_env(parsed)[1]
    return prepare_multi_gpu_env(parsed)


def train_in_ranks(way, runs):
    """Runs commands of `train_qamdt` in each of two ranks, each with the status that it should end with.

    Accelerate knows FSDP and DeepSpeed on GPUs alone, so from the second run on the processes say that they have some;
    PyTorch and DeepSpeed shard on CPUs all the same.
    """
    PartialState(cpu=True)
    save_own_files = accelerate.accelerator.save_accelerator_state
    forward = network.Timesteps.forward
    dtypes_of_times = set()

    def save_late(*arguments, **options):
        time.sleep(0.3 * PartialState().process_index)
        return save_own_files(*arguments, **options)

    def record_dtype(self, timesteps):
        dtypes_of_times.add(timesteps.dtype)
        return forward(self, timesteps)

    accelerate.accelerator.save_accelerator_state = save_late
    network.Timesteps.forward = record_dtype
    if way == "deepspeed":
        import deepspeed

        deepspeed.init_distributed("gloo")
    for number, (arguments, status) in enumerate(runs):
        AcceleratorState._reset_state()
        if number == 0:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
        elif way == "fsdp":
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        else:
            PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
            torch.accelerator.is_available = lambda: True
        assert train_qamdt.main(arguments) == status, arguments
        torch.distributed.barrier()
    assert dtypes_of_times == {torch.int64, torch.float32}, dtypes_of_times


@pytest.fixture
def launch_two(monkeypatch, capfd):
    """Runs `train_in_ranks` as `accelerate launch` does, and returns what the ranks said."""

    def run(way, config_file, runs):
        for name, value in {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}.items():
            monkeypatch.setenv(name, value)
        for name, value in launcher_environment(config_file).items():
            monkeypatch.setenv(name, value)
        AcceleratorState._reset_state(reset_partial_state=True)
        run_ranks(lambda: train_in_ranks(way, runs))
        return capfd.readouterr().err

    return run


def read_log(run):
    return [json.loads(line) for line in (run / "loss.jsonl").read_text().splitlines()]


def assert_same_training(one, straight, resumed):
    """Losses, norms of the whole gradient and averaged weights are those of one process; after a stop, exactly."""
    logs = [read_log(run) for run in (one, straight, resumed)]
    for key in ("loss", "grad_norm"):
        values = [[line[key] for line in log] for log in logs]
        assert values[1] == pytest.approx(values[0], abs=1e-5)
        assert values[2] == values[1]
    assert min(line["grad_norm"] for line in logs[0]) > 0.05, "nothing was clipped"
    for name, tolerance in ((f"export/{WEIGHTS}", 1e-5), ("ema_snapshots/step-00000004-length-0.2.safetensors", 1e-3)):
        weights = [load_file(run / name) for run in (one, straight, resumed)]
        torch.testing.assert_close(weights[1], weights[0], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(weights[2], weights[1], atol=0, rtol=0)
    model = QAMDTTransformer2DModel.from_pretrained(straight / "export" / "transformer")
    torch.testing.assert_close(model.state_dict(), load_file(straight / "export" / WEIGHTS), atol=0, rtol=0)

    # The checkpoint lists what the slower process wrote.
    state = json.loads((straight / "checkpoints/step-00000004/state.json").read_text())
    assert {"resume/random_states_0.pkl", "resume/random_states_1.pkl"} <= state["sha256"].keys()


@pytest.fixture
def plan(config, tmp_path):
    """Makes the command of a run into a folder of that name, and the status that it should end with."""

    def plan(name, *overrides, status=0):
        return ["--config", config, f"run.output_dir={tmp_path / name}", *overrides], status

    return plan


HALF = ["run.mixed_precision=bf16", "loss.prediction_type=flow_prediction", "run.max_steps=1"]


def test_sharded_weights_train_save_resume_and_export_as_whole_ones_do(plan, launch_two, tmp_path):
    assert train_qamdt.main([*plan("one")[0], "run.batch_size=6"]) == 0
    base = f"run.init_from={tmp_path / 'one' / 'export'}"
    adapters = ["lora.rank=2", base, "model=null", "optim.ema_snapshot_lengths=null"]
    runs = [
        plan("on_cpus", status=2),
        plan("straight"),
        plan("resumed", "run.max_steps=2"),
        plan("resumed"),
        plan("half", *HALF),
        plan("lora", *adapters, "run.max_steps=2"),
        plan("lora", *adapters, "run.max_steps=3"),
        plan("one", "run.max_steps=5", status=2),
        plan("muon", "optim.optimizer=muon", status=2),
    ]
    said = launch_two("fsdp", "fsdp2.yaml", runs)
    assert "the launcher asks for FSDP, which Accelerate offers on several GPUs alone" in said
    assert "step-00000004 was written without FSDP and DeepSpeed, and this run is launched with FSDP" in said
    assert "`optim.optimizer` is muon" in said
    assert_same_training(*(tmp_path / name for name in ("one", "straight", "resumed")))
    trained = load_file(tmp_path / "lora/export/pytorch_lora_weights.safetensors")
    assert any(adapter.abs().max() > 0 for name, adapter in trained.items() if "lora_B" in name)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_a_sharded_optimizer_trains_saves_resumes_and_exports_as_a_whole_one_does(plan, launch_two, tmp_path):
    masked = "loss.passes=masked"
    assert train_qamdt.main([*plan("one", masked)[0], "run.batch_size=6"]) == 0
    runs = [
        plan("on_cpus", masked, status=2),
        plan("straight", masked),
        plan("resumed", masked, "run.max_steps=2"),
        plan("resumed", masked),
        plan("half", masked, *HALF),
        plan("both", status=2),
        plan("muon", masked, "optim.optimizer=muon", status=2),
    ]
    said = launch_two("deepspeed", "deepspeed.yaml", runs)
    assert "the launcher asks for DeepSpeed, which Accelerate offers on several GPUs alone" in said
    assert "`loss.passes` is both" in said
    assert "`optim.optimizer` is muon" in said
    assert_same_training(*(tmp_path / name for name in ("one", "straight", "resumed")))
