"""What a run refuses, by how it was launched."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from qamdt.run_control import forget_earlier_runs
from qamdt.settings import build
from qamdt.training import launch
from qamdt.training.config import TrainConfig


def make_config(**groups):
    run = {"output_dir": "none", "max_steps": 1, **groups.pop("run", {})}
    return build(TrainConfig, {"model": {}, "run": run, **groups})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_fp16_without_a_gpu_is_refused_rather_than_ignored():
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=r"`run.mixed_precision` is fp16, which needs a GPU.*set it to bf16 or no"):
        launch.make_accelerator(make_config(run={"mixed_precision": "fp16"}))


def test_a_second_run_in_one_process_has_a_precision_of_its_own():
    AcceleratorState._reset_state(reset_partial_state=True)
    for precision in ("bf16", "no", "bf16"):
        accelerator = launch.make_accelerator(make_config(run={"mixed_precision": precision}))
        assert accelerator.mixed_precision == precision
    forget_earlier_runs()
    assert Accelerator(cpu=True).mixed_precision == "no"  # as the decoders' trainings make theirs


def test_fsdp_of_the_first_version_is_refused(monkeypatch):
    plugin = SimpleNamespace(fsdp_version=1)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin), num_processes=2
    )
    monkeypatch.setattr(launch, "Accelerator", lambda **arguments: accelerator)
    with pytest.raises(ValueError, match=r"FSDP must be of version 2, got 1; set `fsdp_version: 2`"):
        launch.make_accelerator(make_config())
