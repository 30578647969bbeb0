"""What `--dry-run` says of a run before it begins."""

import math
import re

import pytest
import torch
import yaml

import train_qamdt
from qamdt.training import run_estimate
from qamdt.training.config import CONFIG_DIR, load_config


PRESETS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_says_its_settings_size_memory_and_speed(preset, monkeypatch, capsys):
    if preset == "lora":
        pytest.importorskip("peft")
    monkeypatch.setattr(run_estimate, "PATIENCE_IN_S", 0)
    assert train_qamdt.main(["--config", preset, "--dry-run"]) == 0
    settings, _, estimate = capsys.readouterr().out.partition("\n\n")
    assert yaml.safe_load(settings)["run"]["output_dir"] == f"runs/{preset}"
    num_parameters, num_trained = re.match(r"([\d.]+) M parameters, ([\d.]+) M of them train", estimate).groups()
    assert 0 < float(num_trained) <= float(num_parameters)
    sizes = [float(size) for size in re.findall(r"([\d.]+) GiB", estimate)]
    assert sizes[-1] == pytest.approx(sum(sizes[:-1]), abs=0.05)
    speed = re.search(r"About ([\d.e-]+) tokens or ([\d.e-]+) crops a second", estimate)
    assert min(map(float, speed.groups())) > 0


def test_a_speed_is_never_nothing():
    written = [run_estimate.in_digits(speed) for speed in (12_345.6, 10.4, 3.14159, 0.0371, 1e-6)]
    assert written == ["12346", "10", "3.1", "0.037", "1e-06"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="on a GPU one kernel serves both")
def test_speed_is_measured_on_batches_and_as_the_training_computes(monkeypatch):
    """One crop at a time is a third as fast on a CPU; memory is judged with the kernel that a GPU takes."""
    runs = []
    forward = run_estimate.QAMDTBlock.forward

    def record(self, hidden_states, *arguments, **options):
        runs.append((len(hidden_states), torch.backends.cuda.flash_sdp_enabled()))
        return forward(self, hidden_states, *arguments, **options)

    monkeypatch.setattr(run_estimate.QAMDTBlock, "forward", record)
    monkeypatch.setattr(run_estimate, "PATIENCE_IN_S", math.inf)
    run_estimate.describe_run(load_config("tiny", ["run.batch_size=5", "run.mixed_precision=bf16"]))
    assert runs == [(1, True), *((num_crops, False) for num_crops in (1, 1, 2, 2, 4, 4, 5, 5))]
