"""Jobs that do not know of each other encode a corpus, and the merged folder is the one of a single process."""

import dataclasses
import json
import math
import os
import signal

import pytest
import torch

from data_prep import latent_units
from data_prep.encode_latents import main
from data_prep.merge_shards import main as merge
from qamdt.audio import write_audio
from qamdt.manifest import Record, read_manifest, write_manifest


NUM_CLIPS = 7


@pytest.fixture
def manifest(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    records = []
    for i in range(NUM_CLIPS):
        seconds = torch.arange(5120 + 2560 * (i % 2)) / 16_000
        write_audio(folder / f"{i}.wav", 0.4 * torch.sin(2 * math.pi * 100 * (i + 1) * seconds), 16_000)
        captions = (f"song {i}", f"another song {i}")
        records.append(Record(id=f"clip-{i}", path=f"{i}.wav", duration_in_s=len(seconds) / 16_000, captions=captions))
    write_manifest(folder / "manifest.jsonl", records)
    (folder / "4.wav").write_bytes(b"no sound")
    return folder / "manifest.jsonl"


@pytest.fixture
def encode(manifest, encoders_dir, monkeypatch):
    monkeypatch.setattr("data_prep.latent_update.TEXTS_PER_SHARD", 4)

    def run(out, *options):
        arguments = ["--manifest", str(manifest), "--vae", str(encoders_dir / "vae"), "--out", str(out)]
        arguments += ["--text-encoder", str(encoders_dir / "text"), "--batch-size", "2", "--clips-per-shard", "2"]
        return main([*arguments, *options])

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("count", [1, 3, 9])
def test_merged_shards_are_what_one_process_writes(encode, tmp_path, count):
    assert encode(tmp_path / "one") == 1  # a clip is no sound
    out = tmp_path / "many"
    statuses = [encode(out, "--shard", f"{number}/{count}") for number in reversed(range(count))]
    assert sum(statuses) == 1
    for _ in range(2):
        assert merge([str(out)]) == 0
        assert contents(out) == contents(tmp_path / "one")
    assert encode(out) == 1
    assert contents(out) == contents(tmp_path / "one")


def test_folders_of_other_machines_are_merged_and_left_alone(encode, tmp_path):
    encode(tmp_path / "one")
    for number in range(2):
        encode(tmp_path / f"machine-{number}", "--shard", f"{number}/2")
    before = [contents(tmp_path / f"machine-{number}") for number in range(2)]
    for _ in range(2):
        assert merge([str(tmp_path / "many"), str(tmp_path / "machine-0"), str(tmp_path / "machine-1")]) == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert before == [contents(tmp_path / f"machine-{number}") for number in range(2)]


def test_a_shard_that_was_killed_goes_on_where_it_was(encode, tmp_path, monkeypatch, capsys):
    encode(tmp_path / "one")
    out, count = tmp_path / "many", [0]
    encode_waveforms = latent_units.encode_waveforms

    def encode_and_die(*given):
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode_waveforms(*given)

    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            monkeypatch.setattr(latent_units, "encode_waveforms", encode_and_die)
            monkeypatch.setattr(latent_units, "MOST_SECONDS_PER_SHARD", 0.0)
            encode(out, "--shard", "0/2")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    encode(out, "--shard", "1/2")
    assert merge([str(out)]) == 2
    assert "shard 0/2 is missing or has not finished" in capsys.readouterr().err
    encode(out, "--shard", "0/2")
    assert merge([str(out)]) == 0
    assert contents(out) == contents(tmp_path / "one")


def test_shards_that_do_not_belong_together_are_refused(encode, manifest, tmp_path, capsys):
    out = tmp_path / "many"
    assert merge([str(out)]) == 2
    assert "no shard of" in capsys.readouterr().err
    encode(out, "--shard", "0/2")
    encode(out, "--shard", "1/2", "--max-captions", "1")
    assert merge([str(out)]) == 2
    assert "made with other settings than shard-00000-of-00002.json: ['options']" in capsys.readouterr().err
    encode(out, "--shard", "1/2")
    (victim,) = out.glob("latents-00001-*")
    content = victim.read_bytes()
    victim.unlink()
    assert merge([str(out)]) == 2
    assert "2 clips and 0 texts are not there" in capsys.readouterr().err
    victim.write_bytes(content)
    records = read_manifest(manifest)
    write_manifest(manifest, [dataclasses.replace(record, captions=("changed",)) for record in records])
    assert merge([str(out)]) == 2
    assert "has changed since the shards were made" in capsys.readouterr().err
    assert not (out / "index.json").exists()


def test_a_shard_out_of_range_is_refused(encode, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        encode(tmp_path / "many", "--shard", "2/2")
    assert "must be i/n with 0 <= i < n" in capsys.readouterr().err
    assert encode(tmp_path / "many", "--shard", "0/2", "--clean") == 2


def test_texts_that_training_encodes_leave_no_states_but_the_empty_one(encode, tmp_path):
    assert encode(tmp_path / "online", "--text", "online") == 1
    assert json.loads((tmp_path / "online" / "index.json").read_text())["num_texts"] == 1
