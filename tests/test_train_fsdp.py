"""Two processes that share the weights (FSDP 2), launched with the file that ships, train as one that has them all."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train_qamdt
from qamdt.manifest import Record
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.shards import INDEX_NAME, write_json, write_latent_shard, write_text_shard


ROOT = Path(__file__).resolve().parent.parent
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
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
# Trains again and again in each rank, as imports take longer than training. Accelerate knows FSDP on GPUs alone, so the
# processes call themselves GPUs; PyTorch shards on CPUs all the same.
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
for number, (arguments, status) in enumerate(json.loads(sys.argv[1])):
    AcceleratorState._reset_state()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU if number else DistributedType.MULTI_CPU
    assert train_qamdt.main(arguments) == status, arguments
    torch.distributed.barrier()
assert dtypes_of_times == {torch.int64, torch.float32}, dtypes_of_times
"""


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def config(tmp_path):
    """The settings of a run over twelve clips, as a file."""
    folder = tmp_path / "latents"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    names = [f"{i}" for i in range(12)]
    records = [Record(id=name, path=name, duration_in_s=1.0, captions=(f"song {name}",)) for name in names]
    means = [torch.randn(2, 16, 4, generator=generator) for _ in names]
    curves = [torch.full((16,), math.nan)] * 12
    write_latent_shard(folder, records, means, [mean.abs() / 10 for mean in means], curves)
    texts = ["", *(f"song {name}" for name in names)]
    write_text_shard(folder, texts, [torch.randn(3, 8, generator=generator) for _ in texts])
    index = {"scaling_factor": 1.0, "vae_scaling_factor": 1.0, "quality": None, "max_captions": None}
    write_json(folder / INDEX_NAME, index)
    values = {
        "data": {"latents": str(folder), "crop_in_frames": 16},
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


def read_log(run):
    return [json.loads(line) for line in (run / "loss.jsonl").read_text().splitlines()]


@pytest.mark.slow  # 30 s: a launcher and two processes import everything, on one core
def test_sharded_weights_train_save_resume_and_export_as_whole_ones_do(config, tmp_path):
    assert train_qamdt.main(["--config", config, f"run.output_dir={tmp_path / 'one'}", "run.batch_size=6"]) == 0

    def run(name, *overrides, status=0):
        return ["--config", config, f"run.output_dir={tmp_path / name}", *overrides], status

    base = f"run.init_from={tmp_path / 'one' / 'export'}"
    adapters = ["lora.rank=2", base, "model=null", "optim.ema_snapshot_lengths=null"]
    runs = [
        run("on_cpus", status=2),
        run("straight"),
        run("resumed", "run.max_steps=2"),
        run("resumed"),
        run("half", "run.mixed_precision=bf16", "loss.prediction_type=flow_prediction", "run.max_steps=1"),
        run("lora", *adapters, "run.max_steps=2"),
        run("lora", *adapters, "run.max_steps=3"),
        run("one", "run.max_steps=5", status=2),
        run("muon", "optim.optimizer=muon", status=2),
    ]
    script = tmp_path / "run_all.py"
    script.write_text(RUN_ALL)
    settings = ["--config_file", str(ROOT / "configs/accelerate/fsdp2.yaml"), "--num_processes", "2"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *settings, "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, str(script), json.dumps(runs)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert "the launcher asks for FSDP, which Accelerate offers on GPUs alone" in done.stderr
    assert "step-00000004 was written without FSDP and DeepSpeed, and this run is launched with FSDP" in done.stderr
    assert "`optim.optimizer` is muon" in done.stderr

    # As one process: losses, norms of the whole gradient, averaged weights. As if it had not stopped: exactly.
    one, straight, resumed = (read_log(tmp_path / name) for name in ("one", "straight", "resumed"))
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in one] == pytest.approx([line[key] for line in straight], abs=1e-5)
        assert [line[key] for line in resumed] == [line[key] for line in straight]
    assert min(line["grad_norm"] for line in one) > 0.05, "nothing was clipped"
    one, straight, resumed = (
        load_file(tmp_path / name / "export" / WEIGHTS) for name in ("one", "straight", "resumed")
    )
    torch.testing.assert_close(straight, one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(resumed, straight, atol=0, rtol=0)
    model = QAMDTTransformer2DModel.from_pretrained(tmp_path / "straight" / "export" / "transformer")
    torch.testing.assert_close(model.state_dict(), straight, atol=0, rtol=0)
    snapshots = [
        load_file(tmp_path / name / "ema_snapshots/step-00000004-length-0.2.safetensors")
        for name in ("one", "straight", "resumed")
    ]
    torch.testing.assert_close(snapshots[1], snapshots[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(snapshots[2], snapshots[1], atol=0, rtol=0)

    # A checkpoint is complete: it lists what the slower process wrote.
    state = json.loads((tmp_path / "straight/checkpoints/step-00000004/state.json").read_text())
    assert {"resume/random_states_0.pkl", "resume/random_states_1.pkl"} <= state["sha256"].keys()
    adapters = load_file(tmp_path / "lora/export/pytorch_lora_weights.safetensors")
    assert any(adapter.abs().max() > 0 for name, adapter in adapters.items() if "lora_B" in name)
