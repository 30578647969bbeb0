"""What a run shows in Weights & Biases, written by the real client offline."""

import json
import shutil
import struct

import pytest
import soundfile
import torch
from PIL import Image

from qamdt.training.tracking import WandbTracker


wandb = pytest.importorskip("wandb")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    yield tmp_path / "run"
    wandb.teardown()


def read_records(file):
    """The records of an offline run, each cut to fit into blocks of 32 KiB as in LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = file.read_bytes(), 7, b""  # after wandb's own header
    while place + 7 <= len(content):
        if -place % 2**15 < 7:  # too little for a header is left empty
            place += -place % 2**15
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def read_history(folder):
    """What was logged in all launches of a run: step and values of each line."""
    return [
        (
            record.history.step.num,
            {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item},
        )
        for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))
        for record in read_records(file)
        if record.WhichOneof("record_type") == "history"
    ]


def end_launch(tracker):
    """Ends a launch as its process does at exit: `finish` leaves the last records to wandb's own process, which writes
    them while it shuts down, and only `teardown` waits for that."""
    tracker.close()
    wandb.teardown()


def test_a_resumed_run_is_one_run_with_its_losses_and_previews(folder, tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "spectrograms.png")
    waveforms = torch.linspace(-1, 1, 3200).repeat(2, 1)
    for steps in ((1, 2), (3,)):
        tracker = WandbTracker(folder, {"run": {"max_steps": 3}, "lora": None})
        for step in steps:
            tracker.log({"step": step, "loss": 1 / step})
        tracker.log_previews(["piano", "calm drums"], waveforms, 16_000, tmp_path / "spectrograms.png", steps[-1])
        end_launch(tracker)

    (run_id,) = {file.stem for file in folder.glob("wandb/offline-run-*/*.wandb")}
    assert run_id == "run-" + (folder / "wandb_id").read_text()
    history = read_history(folder)
    assert [(step, values["train/loss"]) for step, values in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    _, values = history[1]
    assert values["preview/01/caption"] == "calm drums"
    assert values["preview/spectrograms/width"] == 4
    for name in ("preview/00", "preview/01"):
        (file,) = folder.glob(f"wandb/offline-run-*/files/{values[f'{name}/path']}")
        assert soundfile.info(file).samplerate == 16_000
        assert soundfile.info(file).frames == 3200


def test_a_new_run_in_the_place_of_a_removed_one_is_another_run(folder):
    names = set()
    for _ in range(2):
        WandbTracker(folder, {}).close()
        names.add((folder / "wandb_id").read_text())
        shutil.rmtree(folder)
        folder.mkdir()
    assert len(names) == 2


def test_a_refused_login_is_told_with_a_way_out(folder, monkeypatch):
    def refuse(**arguments):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(RuntimeError, match=r"`run.log_with=wandb`.*No API key.*`wandb login`.*WANDB_MODE=offline"):
        WandbTracker(folder, {})
