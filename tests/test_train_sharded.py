"""Two processes that share weights or optimizer, launched with the files that ship, train as one that has all."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import train_qamdt
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from tests.tiny_training import MODEL


ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("fresh_accelerator")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
# Trains again and again in each rank, as imports take longer than training. Accelerate knows FSDP and DeepSpeed on GPUs
# alone, so from the second run on the processes say that they have some; PyTorch and DeepSpeed shard on CPUs all the same.
RUN_ALL = """
import json, sys, time
import accelerate.accelerator
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
import qamdt.models.transformer_qamdt as network
import train_qamdt

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
way, runs = sys.argv[1], json.loads(sys.argv[2])
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
"""


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


def launch_two(way, config_file, runs, folder):
    """Runs commands of `train_qamdt`, each with the status that it should end with, and returns what they said."""
    script = folder / "run_all.py"
    script.write_text(RUN_ALL)
    settings = ["--config_file", str(ROOT / "configs/accelerate" / config_file), "--num_processes", "2"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *settings, "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment["DS_ACCELERATOR"] = "cpu"
    command = [*launch, str(script), way, json.dumps(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stderr


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


@pytest.mark.slow  # 30 s: a launcher and two processes import everything, on one core
def test_sharded_weights_train_save_resume_and_export_as_whole_ones_do(plan, tmp_path):
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
    said = launch_two("fsdp", "fsdp2.yaml", runs, tmp_path)
    assert "the launcher asks for FSDP, which Accelerate offers on several GPUs alone" in said
    assert "step-00000004 was written without FSDP and DeepSpeed, and this run is launched with FSDP" in said
    assert "`optim.optimizer` is muon" in said
    assert_same_training(*(tmp_path / name for name in ("one", "straight", "resumed")))
    trained = load_file(tmp_path / "lora/export/pytorch_lora_weights.safetensors")
    assert any(adapter.abs().max() > 0 for name, adapter in trained.items() if "lora_B" in name)


@pytest.mark.slow  # 30 s, likewise
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_a_sharded_optimizer_trains_saves_resumes_and_exports_as_a_whole_one_does(plan, tmp_path):
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
    said = launch_two("deepspeed", "deepspeed.yaml", runs, tmp_path)
    assert "the launcher asks for DeepSpeed, which Accelerate offers on several GPUs alone" in said
    assert "`loss.passes` is both" in said
    assert "`optim.optimizer` is muon" in said
    assert_same_training(*(tmp_path / name for name in ("one", "straight", "resumed")))
