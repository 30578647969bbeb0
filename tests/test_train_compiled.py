"""A run with compiled blocks computes what one without them does."""

import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState

import train_qamdt
from qamdt.manifest import Record
from qamdt.run_control import StopSignal
from qamdt.settings import build
from qamdt.training.config import TrainConfig
from tests.tiny_training import MODEL


SMALL_MODEL = MODEL | {"num_layers": 1, "attention_head_dim": 8}


@pytest.fixture
def latents(tmp_path, write_latents):
    """Six clips whose captions are of different lengths."""
    folder = tmp_path / "latents"
    generator = torch.Generator().manual_seed(0)
    names = [f"{i}" for i in range(6)]
    records = [Record(id=name, path=name, duration_in_s=1.0, captions=(f"song {name}",)) for name in names]
    means = [torch.randn(2, 16, 4, generator=generator) for _ in names]
    texts = ["", *(f"song {name}" for name in names)]
    states = {text: torch.randn(11 + i, 8, generator=generator) for i, text in enumerate(texts)}
    write_latents(folder, records, means, [mean.abs() / 10 for mean in means], states)
    return folder


@pytest.mark.slow  # a minute: C++ is generated and compiled for three kinds of call, forward and backward
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_blocks_give_the_same_losses_and_gradients(latents, tmp_path):
    for name in ("eager", "compiled"):
        AcceleratorState._reset_state(reset_partial_state=True)
        values = {
            "data": {"latents": str(latents), "crop_in_frames": [8, 16]},
            "model": SMALL_MODEL,
            # With a decay of 0 the first moment of AdamW is the gradient.
            "optim": {"learning_rate": 0.01, "warmup_steps": 0, "beta1": 0.0},
            "loss": {"passes": "both"},
            "run": {
                "output_dir": str(tmp_path / name),
                "batch_size": 2,
                "max_steps": 6,
                "log_steps": 1,
                "compile": name == "compiled",
            },
        }
        torch._dynamo.utils.counters.clear()
        train_qamdt.train(build(TrainConfig, values), StopSignal())
    AcceleratorState._reset_state(reset_partial_state=True)

    # The decoder block with and without positions and the side interpolator; other lengths need no other code.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "loss.jsonl").read_text().splitlines()]
        for name in ("eager", "compiled")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    state = "checkpoints/step-00000006/resume/optimizer.bin"
    eager, compiled = (
        torch.load(tmp_path / name / state, weights_only=True)["state"] for name in ("eager", "compiled")
    )
    for number, values in eager.items():
        torch.testing.assert_close(values["exp_avg"], compiled[number]["exp_avg"], atol=1e-5, rtol=1e-4)
