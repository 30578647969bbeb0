"""Processes killed between and in the middle of writes, and disks that fill up: nothing is lost, doubled or half-written.

The killed process is a fork of the test's own, which has everything imported; it kills itself at a place that is chosen.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

import train_qamdt
from data_prep import encode_latents, latent_units
from qamdt.keyed_rows import KeyedRows
from qamdt.manifest import Record, write_manifest
from qamdt.settings import build
from qamdt.training.checkpoints import find_checkpoint, list_checkpoints
from qamdt.training.config import TrainConfig
from tests.tiny_training import MODEL, StopAfter
from whisq import cli


NUM_KILLS = 10
NUM_CLIPS = 12


def run_in_fork(function):
    """Runs a function in a process of its own and returns its exit code, negative where a signal ended it."""

    def run():
        torch.set_num_threads(1)  # threads of the parent do not live on in a forked process
        os._exit(function() or 0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


def kill_this_process(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def run_on_a_full_disk(function, num_bytes):
    """Runs a function in a process whose files take so many bytes, and a write beyond them fails, as on a full disk.

    Returns its exit code and what it said.
    """
    end_to_read, end_to_write = os.pipe()

    def run():
        sys.stdout = sys.stderr = os.fdopen(end_to_write, "w", encoding="utf-8")  # no file, so that all of it fits
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        status = function()
        sys.stderr.flush()
        return status

    status = run_in_fork(run)
    os.close(end_to_write)
    with os.fdopen(end_to_read, encoding="utf-8") as said:
        return status, said.read()


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Clips with captions."""
    folder = tmp_path_factory.mktemp("music")
    for i in range(NUM_CLIPS):
        samples = 0.1 * np.random.default_rng(i).normal(size=5120)
        soundfile.write(folder / f"{i}.wav", samples, 16_000)
    records = [Record(id=f"{i}", path=f"{i}.wav", duration_in_s=0.32, captions=("song",)) for i in range(NUM_CLIPS)]
    write_manifest(folder / "manifest.jsonl", records)
    return folder / "manifest.jsonl"


@pytest.fixture
def score(music, scorer_dir):
    return lambda out: cli.main(
        ["score", str(music), "-o", str(out), "--model", str(scorer_dir), "--batch-seconds", "3"]
    )


def test_kills_between_rows_and_inside_of_them(score, tmp_path, monkeypatch):
    assert score(tmp_path / "unbroken.jsonl") == 0
    out = tmp_path / "scores.jsonl"
    append = KeyedRows.append
    for number in range(NUM_KILLS):

        def append_and_die(rows, row, is_torn=number % 3 == 1):
            append(rows, row)
            if is_torn:
                os.ftruncate(rows._file.fileno(), os.fstat(rows._file.fileno()).st_size - 7)
            kill_this_process()

        monkeypatch.setattr(KeyedRows, "append", append_and_die)
        assert run_in_fork(lambda: score(out)) == -signal.SIGKILL
        whole = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
        assert len({row["id"] for row in whole}) == len(whole)
    assert 0 < len(whole) < NUM_CLIPS
    monkeypatch.setattr(KeyedRows, "append", append)
    assert score(out) == 0
    assert out.read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()


def test_a_disk_that_fills_up_while_scoring(score, tmp_path):
    assert score(tmp_path / "unbroken.jsonl") == 0
    unbroken = (tmp_path / "unbroken.jsonl").read_bytes()
    out = tmp_path / "scores.jsonl"
    status, said = run_on_a_full_disk(lambda: score(out), len(unbroken) // 2)
    assert status == 1
    assert "whisq score: error: " in said
    rows = out.read_bytes()
    assert rows
    assert unbroken.startswith(rows)
    assert rows.endswith(b"\n")
    assert score(out) == 0
    assert out.read_bytes() == unbroken


@pytest.fixture
def encode(music, encoders_dir):
    def encode(out):
        return encode_latents.main(
            ["--manifest", str(music), "--vae", str(encoders_dir / "vae"), "--out", str(out)]
            + ["--text-encoder", str(encoders_dir / "text"), "--batch-size", "1", "--clips-per-shard", "1"]
        )

    return encode


def read_latents(folder):
    """Returns the latents of each key, and sees that none is there twice."""
    latents = {}
    for path in folder.glob("latents-*.safetensors"):
        with safe_open(path, framework="np") as file:
            for key in file.get_tensor("keys").tolist():
                assert key not in latents
                latents[key] = file.get_tensor("mean").tobytes()
    return latents


def test_kills_while_encoding(encode, tmp_path, monkeypatch):
    assert encode(tmp_path / "unbroken") == 0
    out = tmp_path / "latents"
    write = latent_units.write_latent_shard

    def write_and_die(*arguments, **options):
        write(*arguments, **options)
        kill_this_process()

    for number in range(NUM_KILLS):
        with monkeypatch.context() as patch:
            if number % 3 == 1:  # when the file is full and not yet in its place
                patch.setattr("qamdt.files.os.replace", kill_this_process)
            else:
                patch.setattr(latent_units, "write_latent_shard", write_and_die)
            assert run_in_fork(lambda: encode(out)) == -signal.SIGKILL
    num_there = len(read_latents(out))
    assert 0 < num_there < NUM_CLIPS
    assert encode(out) == 0
    assert read_latents(out) == read_latents(tmp_path / "unbroken")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "unbroken").iterdir()}


@pytest.mark.parametrize("fits", ["nothing", "all but the largest file"])
def test_a_disk_that_fills_up_while_encoding(encode, tmp_path, fits):
    assert encode(tmp_path / "unbroken") == 0
    out = tmp_path / "latents"
    num_bytes = (
        100 if fits == "nothing" else max(path.stat().st_size for path in (tmp_path / "unbroken").iterdir()) - 1
    )
    status, said = run_on_a_full_disk(lambda: encode(out), num_bytes)
    assert status == 2
    assert "error: " in said
    assert not (out / "index.json").exists()
    assert encode(out) == 0
    assert read_latents(out) == read_latents(tmp_path / "unbroken")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "unbroken").iterdir()}


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(write_noise, fresh_accelerator, tmp_path):
    write_noise(tmp_path / "latents", [16] * 4)
    run = {"output_dir": str(tmp_path / "run"), "batch_size": 2, "max_steps": 4, "log_steps": 1, "checkpoint_steps": 2}
    data = {"latents": str(tmp_path / "latents"), "crop_in_frames": 16}
    config = build(TrainConfig, {"data": data, "model": MODEL, "run": run})
    train_qamdt.train(config, StopAfter(2))
    [checkpoint] = list_checkpoints(tmp_path / "run" / "checkpoints")
    largest = max(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    arguments = [f"--config={tmp_path / 'run' / 'config.yaml'}"]
    status, said = run_on_a_full_disk(lambda: train_qamdt.main(arguments), largest // 2)
    assert status == 2
    assert "error: " in said
    assert find_checkpoint(tmp_path / "run" / "checkpoints") == (checkpoint, [], [])
    assert train_qamdt.train(config, StopAfter())["step"] == 4
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "loss.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
