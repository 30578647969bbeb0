"""What a resumed training may change, and what it refuses: each by the name of the setting, old and new value."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train_qamdt
from qamdt.files import write_json
from qamdt.latent_folder import INDEX_NAME
from qamdt.settings import build, override
from qamdt.training.checkpoints import list_checkpoints
from qamdt.training.config import TrainConfig, load_config
from qamdt.training.resumption import FREE_SETTINGS
from tests.tiny_training import PLAIN_MODEL, StopAfter


pytestmark = pytest.mark.usefixtures("fresh_accelerator")
LENGTHS = [16] * 4  # of the clips, in latent frames


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_noise):
    """A run of two updates."""
    folder = tmp_path_factory.mktemp("run")
    write_noise(folder / "latents", LENGTHS)
    values = {
        "data": {"latents": str(folder / "latents"), "crop_in_frames": 16},
        "model": PLAIN_MODEL,
        "optim": {"learning_rate": 0.003, "warmup_steps": 0},
        "run": {"output_dir": str(folder / "out"), "batch_size": 2, "max_steps": 2, "log_steps": 1},
    }
    config = build(TrainConfig, values)
    train_qamdt.train(config, StopAfter())
    AcceleratorState._reset_state(reset_partial_state=True)
    return config


@pytest.fixture
def copied_run(run, tmp_path):
    """The same run in a folder that a test may change."""
    shutil.copytree(run.run.output_dir, tmp_path / "out")
    return override(run, {"run.output_dir": str(tmp_path / "out")})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.prediction_type": "epsilon"}, "`loss.prediction_type` was 'v_prediction' and is now 'epsilon'"),
        ({"loss.beta_end": 0.02}, "`loss.beta_end` was 0.0195 and is now 0.02"),
        ({"loss.num_train_timesteps": 500}, "`loss.num_train_timesteps` was 1000 and is now 500"),
        ({"model.num_layers": 5}, "`model.num_layers` was 3 and is now 5"),
        ({"model.mlp_ratio": 2.0}, "`model.mlp_ratio` was null and is now 2.0"),
        ({"data.scaling_factor": 2.0}, "`data.scaling_factor` was null and is now 2.0"),
        ({"data.global_quality_from": "source"}, "`data.global_quality_from` was 'clip' and is now 'source'"),
        (
            {"optim.optimizer": "muon", "run.seed": 3},
            "`run.seed` was 0 and is now 3, `optim.optimizer` was 'adamw' and is now 'muon'; give",
        ),
        (
            {"optim.weight_decay": 0.1, "optim.learning_rate": 0.1},
            "`optim.weight_decay` was 0.01 and is now 0.1; give",
        ),
    ],
)
def test_what_gives_the_weights_another_meaning_is_refused(run, changes, words):
    folder = Path(run.run.output_dir)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"cannot be resumed with other settings: .*{words}"):
        train_qamdt.train(override(run, changes), StopAfter())
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_how_a_run_goes_on_may_change_and_is_said(copied_run, capsys):
    slow, fast = (override(copied_run, {"run.max_steps": 4}), override(copied_run, {"run.max_steps": 4}))
    fast = override(fast, {"optim.learning_rate": 0.03, "run.output_dir": slow.run.output_dir + "-fast"})
    shutil.copytree(slow.run.output_dir, fast.run.output_dir)
    weights = []
    for config in (slow, fast):
        train_qamdt.train(config, StopAfter())
        AcceleratorState._reset_state(reset_partial_state=True)
        (newest, *_) = list_checkpoints(Path(config.run.output_dir) / "checkpoints")
        weights.append(load_file(newest / "resume" / "model.safetensors"))
    said = capsys.readouterr().err
    assert "`run.max_steps` was 2 and is now 4, `optim.learning_rate` was 0.003 and is now 0.03." in said
    lines = (Path(fast.run.output_dir) / "loss.jsonl").read_text().splitlines()
    assert [json.loads(line)["learning_rate"] for line in lines] == [0.003, 0.003, 0.03, 0.03]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert load_config(Path(fast.run.output_dir) / "config.yaml") == fast


def test_other_data_is_refused_and_the_same_data_elsewhere_is_not(copied_run, tmp_path, write_noise, capsys):
    write_noise(tmp_path / "moved", LENGTHS)
    moved = override(copied_run, {"data.latents": str(tmp_path / "moved"), "run.max_steps": 3})
    assert train_qamdt.train(moved, StopAfter())["step"] == 3
    assert "`data.latents` was" in capsys.readouterr().err
    AcceleratorState._reset_state(reset_partial_state=True)
    for name, changes in {"captions": {"caption": "tune"}, "vae": {"vae_sha256": "other"}}.items():
        write_noise(tmp_path / name, LENGTHS, **changes)
        other = override(moved, {"data.latents": str(tmp_path / name), "run.max_steps": 4})
        with pytest.raises(ValueError, match=f"was 4 clips in .*moved, now it is 4 clips in .*{name}, with other"):
            train_qamdt.train(other, StopAfter())
        AcceleratorState._reset_state(reset_partial_state=True)


def test_a_run_of_an_earlier_version_knows_its_data_by_the_settings(copied_run, tmp_path, write_noise):
    (checkpoint,) = list_checkpoints(tmp_path / "out" / "checkpoints")
    state = json.loads((checkpoint / "state.json").read_text())
    del state["data"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    write_noise(tmp_path / "other", LENGTHS)
    with pytest.raises(ValueError, match="was started on other data: .* was .*/latents, now it is .*/other"):
        train_qamdt.train(override(copied_run, {"data.latents": str(tmp_path / "other")}), StopAfter())
    AcceleratorState._reset_state(reset_partial_state=True)
    longer = override(copied_run, {"run.max_steps": 3})
    assert train_qamdt.train(longer, StopAfter())["data"]["num_clips"] == 4


def test_latents_that_the_autoencoder_scales_otherwise_are_refused(copied_run, tmp_path):
    folder = shutil.copytree(copied_run.data.latents, tmp_path / "latents")
    index = json.loads((folder / INDEX_NAME).read_text())
    write_json(folder / INDEX_NAME, index | {"vae_scaling_factor": 1.1})
    with pytest.raises(ValueError, match=r"scaled by 1\.0, now `data.latents` says 1\.1"):
        train_qamdt.train(override(copied_run, {"data.latents": str(folder)}), StopAfter())


def test_every_free_setting_is_a_setting(run):
    groups = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    for name in FREE_SETTINGS:
        group, _, setting = name.partition(".")
        assert hasattr(groups[group], setting), name
