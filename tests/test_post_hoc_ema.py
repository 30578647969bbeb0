"""Averages whose length is chosen after the training, from the snapshots of a run."""

import json
import multiprocessing
import re
import shutil
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import train_qamdt
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.settings import build
from qamdt.training import post_hoc_ema
from qamdt.training.checkpoints import list_checkpoints
from qamdt.training.config import OptimConfig, TrainConfig
from qamdt.training.ema_snapshots import PowerAverage, SnapshotAverages, power_of_length
from tests.tiny_training import PLAIN_MODEL, StopAfter


pytestmark = pytest.mark.usefixtures("fresh_accelerator")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def latents(tmp_path_factory, write_noise):
    """Four random clips."""
    folder = tmp_path_factory.mktemp("latents")
    write_noise(folder, [16] * 4, scaling_factor=0.5, vae_scaling_factor=0.5)
    return folder


@pytest.fixture(scope="module")
def run(latents, tmp_path_factory):
    """A run of 60 updates with snapshots of two lengths, which kept one checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    train_qamdt.train(make_config(latents, folder, [0.05, 0.1], run={"checkpoint_steps": 20}), StopAfter())
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.fixture
def copied_run(run, tmp_path):
    """A copy of `run` to break."""
    return shutil.copytree(run, tmp_path / "copied", ignore=shutil.ignore_patterns("checkpoints"))


def make_config(latents, output_dir, lengths, snapshot_steps=5, run=None, **groups):
    optim = {"learning_rate": 0.003, "warmup_steps": 2, "ema_decay": 0.9, "ema_snapshot_steps": snapshot_steps}
    values = {
        "data": {"latents": str(latents), "crop_in_frames": 16},
        "model": PLAIN_MODEL,
        "loss": {"passes": "full"},
        "optim": {**optim, "ema_snapshot_lengths": lengths},
        "run": {"output_dir": str(output_dir), "batch_size": 4, "max_steps": 60, "num_checkpoints": 1, **(run or {})},
        **groups,
    }
    return build(TrainConfig, values)


def read_averages(folder, length):
    """The average of a length in the newest checkpoint, in float32."""
    averages = load_file(list_checkpoints(folder / "checkpoints")[0] / "resume" / "power_averages.safetensors")
    return {name.partition("/")[2]: value for name, value in averages.items() if name.startswith(f"{length}/")}


def read_snapshots(folder):
    return {path.name: path.read_bytes() for path in (folder / "ema_snapshots").iterdir()}


def distance(weights, others):
    """How far weights are from others, relative to these."""
    assert weights.keys() == others.keys()
    differences = torch.cat([(weights[name] - others[name]).flatten() for name in others])
    return (differences.norm() / torch.cat([value.flatten() for value in others.values()]).norm()).item()


def reconstruct(*arguments):
    return post_hoc_ema.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("length", [0.02, 0.1, 0.28])
def test_a_power_average_is_the_weighted_mean_of_the_weights_after_each_update(length):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    average, trajectory = PowerAverage(model, length), []
    for step in range(1, 31):
        torch.nn.init.normal_(model.weight)
        average.update(model, step)
        trajectory.append(model.weight.detach().double().clone())
    shares = (torch.arange(31.0, dtype=torch.double) / 30).pow(power_of_length(length) + 1).diff()
    expected = torch.einsum("k,kij->ij", shares, torch.stack(trajectory))
    torch.testing.assert_close(average.averages["weight"], expected.float())


@pytest.mark.parametrize("length", [0.001, 0.05, 0.1, 0.28])
def test_the_length_is_the_spread_of_the_averaged_updates(length):
    times = torch.linspace(0, 1, 100_001, dtype=torch.double)
    shares = times.pow(power_of_length(length) + 1).diff()
    mean = (shares * times[1:]).sum()
    assert (shares * (times[1:] - mean).square()).sum().sqrt().item() == pytest.approx(length, rel=1e-3)


def test_an_average_of_a_third_length_is_the_one_that_a_run_would_have_kept(latents, run, tmp_path, capsys):
    train_qamdt.train(make_config(latents, tmp_path / "third", [0.08]), StopAfter())
    assert reconstruct(run, "--length", 0.08, "--out", tmp_path / "out") == 0
    assert re.search(r"out: within 0\.\d% of an average of length 0\.08", capsys.readouterr().out)
    wanted, found = read_averages(tmp_path / "third", 0.08), load_file(tmp_path / "out" / WEIGHTS)
    nearest_stored = min(distance(read_averages(run, length), wanted) for length in (0.05, 0.1))
    assert distance(found, wanted) < 1e-3
    assert distance(found, wanted) < nearest_stored / 10


@pytest.mark.parametrize(("length", "step"), [(0.05, 60), (0.1, 35)])
def test_a_stored_average_is_given_back(run, tmp_path, length, step):
    assert reconstruct(run, "--length", length, "--step", step, "--out", tmp_path / "new" / "out") == 0
    snapshot = load_file(run / "ema_snapshots" / f"step-{step:08d}-length-{length}.safetensors")
    found = load_file(tmp_path / "new" / "out" / WEIGHTS)
    assert distance(found, {name: value.float() for name, value in snapshot.items()}) < 1e-6


def test_the_folder_is_an_export_with_other_weights(run, tmp_path):
    out, export = tmp_path / "out", run / "export"
    out.mkdir()
    assert reconstruct(run, "--length", 0.15, "--step", 40, "--out", out) == 0
    files, exported = ({file.relative_to(top) for file in top.rglob("*")} for top in (out, export))
    assert files == exported
    assert all(file.stat().st_nlink == 1 for file in out.rglob("*") if file.is_file())
    assert json.loads((out / "training.json").read_text()) == {"step": 40, "ema_length": 0.15, "scaling_factor": 0.5}
    network = QAMDTTransformer2DModel.from_pretrained(out / "transformer").state_dict()
    assert distance(network, load_file(out / WEIGHTS)) == 0
    assert distance(network, load_file(export / WEIGHTS)) > 0.01


def test_snapshots_outlive_checkpoints_and_say_what_they_are(run):
    assert [checkpoint.name for checkpoint in list_checkpoints(run / "checkpoints")] == ["step-00000060"]
    snapshots = post_hoc_ema.list_snapshots(run)
    assert [(s.step, s.length) for s in snapshots] == [(step, x) for step in range(5, 61, 5) for x in (0.05, 0.1)]
    with safe_open(snapshots[0].path, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}


def test_a_resumed_run_equals_a_straight_one_exactly_and_the_end_has_a_snapshot(latents, tmp_path):
    steps = {"max_steps": 12}
    straight = make_config(latents, tmp_path / "straight", [0.05, 0.1], run=steps)
    train_qamdt.train(straight, StopAfter())
    resumed = make_config(latents, tmp_path / "resumed", [0.05, 0.1], run=steps)
    train_qamdt.train(resumed, StopAfter(7))
    assert len(read_snapshots(tmp_path / "resumed")) == 2
    torch.manual_seed(12345)
    train_qamdt.train(resumed, StopAfter())
    snapshots = read_snapshots(tmp_path / "straight")
    assert {name[:13] for name in snapshots} == {"step-00000005", "step-00000010", "step-00000012"}
    assert read_snapshots(tmp_path / "resumed") == snapshots
    for length in (0.05, 0.1):
        averages = [read_averages(tmp_path / name, length) for name in ("straight", "resumed")]
        assert distance(*averages) == 0

    # Nor do averages change what is trained.
    train_qamdt.train(make_config(latents, tmp_path / "without", None, run=steps), StopAfter())
    assert not (tmp_path / "without" / "ema_snapshots").exists()
    for name in ("resume/model.safetensors", WEIGHTS):
        name = f"checkpoints/step-00000012/{name}"
        assert distance(load_file(tmp_path / "without" / name), load_file(tmp_path / "straight" / name)) == 0


def test_what_was_written_after_the_last_checkpoint_is_written_again_after_a_kill(latents, tmp_path):
    def make(name):
        run = {"max_steps": 50, "checkpoint_steps": 20}
        return make_config(latents, tmp_path / name, [0.05, 0.1], snapshot_steps=2, run=run)

    folder = tmp_path / "killed"

    class WaitForTheKill:
        @property
        def is_requested(self):
            while list(folder.glob("ema_snapshots/step-00000026-*")):
                time.sleep(0.1)
            return False

    def work():
        torch.set_num_threads(1)
        train_qamdt.train(make("killed"), WaitForTheKill())

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    while not list(folder.glob("ema_snapshots/step-00000026-*")) and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    reached = max(name for name in read_snapshots(folder) if not name.startswith("."))
    (checkpoint,) = list_checkpoints(folder / "checkpoints")
    assert checkpoint.name < reached[:13]
    (folder / "ema_snapshots" / "step-00000999-length-0.05.safetensors").write_text("of a future that will not be")
    for name in (f".{reached}.1.tmp", ".tmpgmzWqq"):  # of ours, and of safetensors
        (folder / "ema_snapshots" / name).write_text("cut short")

    train_qamdt.train(make("killed"), StopAfter())
    train_qamdt.train(make("straight"), StopAfter())
    assert read_snapshots(folder) == read_snapshots(tmp_path / "straight")


def test_averages_that_fsdp_spreads_are_written_and_resumed_whole(tmp_path):
    """In a group of one process, in which weights are distributed tensors all the same."""
    config = OptimConfig(ema_snapshot_lengths=[0.05, 0.1], ema_snapshot_steps=3)

    def follow(folder, is_spread):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)
        if is_spread:
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        averages = SnapshotAverages(model, config, tmp_path / folder)
        for step in range(1, 5):
            model.weight.data.mul_(0.9)
            averages.update(model, step)
        return averages, model

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        plain, _ = follow("plain", is_spread=False)
        spread, model = follow("spread", is_spread=True)
        assert isinstance(model.weight, distributed.tensor.DTensor)
        assert distance(spread.gather(), plain.gather()) == 0
        assert len(list((tmp_path / "spread").iterdir())) == 2
        for path in (tmp_path / "spread").iterdir():
            assert path.read_bytes() == (tmp_path / "plain" / path.name).read_bytes()
        (tmp_path / "resume").mkdir()
        plain.save(plain.gather(), tmp_path)
        resumed = SnapshotAverages(model, config, tmp_path / "spread")
        resumed.load(tmp_path)
        assert distance(resumed.gather(), plain.gather()) == 0
        assert resumed.run_digest == spread.run_digest
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", 0], "`--length` must be above 0 and at most 0.28, got 0.0"),
        (["--length", 0.285], "`--length` must be above 0 and at most 0.28, got 0.285"),
        (["--length", "nan"], "`--length` must be above 0 and at most 0.28, got nan"),
        (["--length", 0.1, "--step", 42], "`--step` must be one at which .* snapshots, got 42; the nearest is 40"),
    ],
)
def test_wrong_arguments_are_named(run, tmp_path, capsys, arguments, message):
    assert reconstruct(run, *arguments, "--out", tmp_path / "out") == 2
    assert re.search("error: " + message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_written_to(run, capsys):
    assert reconstruct(run, "--length", 0.1, "--out", run / "export") == 2
    assert "`--out` must be a new or an empty folder" in capsys.readouterr().err


def test_a_length_that_few_snapshots_cannot_give_comes_with_a_warning(run, tmp_path, capsys):
    assert reconstruct(run, "--length", 0.01, "--out", tmp_path / "out") == 0
    assert "warning: that is far off" in capsys.readouterr().err


def test_folders_without_snapshots_or_export_are_told(copied_run, tmp_path, capsys):
    assert reconstruct(tmp_path, "--length", 0.1, "--out", tmp_path / "out") == 2
    assert re.search(
        r"there are no snapshots in .*ema_snapshots'; .*`optim.ema_snapshot_lengths=\[", capsys.readouterr().err
    )
    shutil.rmtree(copied_run / "export")
    assert reconstruct(copied_run, "--length", 0.1, "--out", tmp_path / "out") == 2
    assert "which comes with the first checkpoint" in capsys.readouterr().err


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-7])


def leave_out_the_metadata(path):
    save_file(load_file(path), path)


def change(path, weights=None, **values):
    with safe_open(path, framework="pt") as file:
        snapshot = json.loads(file.metadata()["snapshot"])
    save_file(weights or load_file(path), path, metadata={"snapshot": json.dumps({**snapshot, **values})})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "is damaged .*move it away; the others will do"),
        (leave_out_the_metadata, "is no snapshot that a run of ours wrote"),
        (lambda path: change(path, run_digest="other"), "are of different runs; keep those of one run"),
        (lambda path: change(path, {"a": torch.ones(3)}), r"is of another network than .*'a' has the shape \(3,\)"),
    ],
)
def test_snapshots_that_are_damaged_or_of_another_run_are_named(copied_run, tmp_path, capsys, damage, message):
    damage(copied_run / "ema_snapshots" / "step-00000030-length-0.1.safetensors")
    assert reconstruct(copied_run, "--length", 0.08, "--out", tmp_path / "out") == 2
    assert re.search(rf"step-00000030-length-0\.1\.safetensors {message}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("lengths", "steps", "groups", "message"),
    [
        ([0.05, 0.05], 5, {}, r"`optim.ema_snapshot_lengths` must be different numbers .* got \[0.05, 0.05\]"),
        ([0.3], 5, {}, "above 0 and at most 0.28"),
        ([0], 5, {}, "above 0 and at most 0.28"),
        ([0.1], 0, {}, "`optim.ema_snapshot_steps` must be at least 1, got 0"),
        ([0.1], 5, {"lora": {}}, "`optim.ema_snapshot_lengths` is .* and `lora` trains adapters"),
    ],
)
def test_wrong_settings_are_named(lengths, steps, groups, message):
    with pytest.raises(ValueError, match=message):
        make_config("latents", "run", lengths, steps, run={"init_from": "embedded"}, **groups)


def test_an_average_cannot_begin_in_the_middle_of_a_run(latents, tmp_path):
    run = {"max_steps": 2}
    train_qamdt.train(make_config(latents, tmp_path, None, run=run), StopAfter(1))
    with pytest.raises(ValueError, match=r"is \[0.05\], but .*step-00000001 has averages of the lengths \[\]"):
        train_qamdt.train(make_config(latents, tmp_path, [0.05], run=run), StopAfter())


def test_the_estimate_of_memory_counts_the_averages(capsys):
    sizes = []
    for lengths in ("null", "[0.05, 0.1]"):
        assert train_qamdt.main(["--config", "small", "--dry-run", f"optim.ema_snapshot_lengths={lengths}"]) == 0
        sizes.append(float(re.search(r"averaged weights +([\d.]+) GiB", capsys.readouterr().out)[1]))
    assert sizes[1] == pytest.approx(3 * sizes[0], abs=0.02)
