"""Jobs that do not know of each other score a collection, and the merged file is the one of a single process."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data_prep.merge_shards import main as merge
from qamdt.audio import write_audio
from qamdt.manifest import Record, write_manifest
from whisq.cli import main


ROOT = Path(__file__).resolve().parent.parent
NUM_CLIPS = 11


@pytest.fixture
def manifest(tmp_path):
    music = tmp_path / "music"
    music.mkdir()
    generator = torch.Generator().manual_seed(0)
    records = []
    for i in range(NUM_CLIPS):
        seconds = 0.5 if i < 4 else 0.5 + i / 10
        write_audio(music / f"{i}.wav", torch.rand(int(seconds * 16_000), generator=generator) - 0.5, 16_000)
        records.append(Record(id=f"clip-{i}", path=f"{i}.wav", duration_in_s=seconds, captions=(f"song {i}",)))
    write_manifest(music / "manifest.jsonl", records)
    (music / "3.wav").write_bytes(b"no sound")
    return music / "manifest.jsonl"


@pytest.fixture
def run(manifest, scorer_dir):
    def score(out, *options, status=1):  # one clip is no sound
        arguments = ["score", str(manifest), "-o", str(out), "--model", str(scorer_dir), "--batch-seconds", "3"]
        assert main([*arguments, *options]) == status

    return score


@pytest.fixture
def unbroken(run, tmp_path):
    run(tmp_path / "one" / "scores.jsonl")
    return tmp_path / "one"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def score_all_shards(run, out, count):
    statuses = []
    for number in reversed(range(count)):
        try:
            run(out, "--shard", f"{number}/{count}", status=0)
        except AssertionError:
            statuses.append(number)
    assert len(statuses) == 1  # the shard with the clip that is no sound says so


@pytest.mark.parametrize("count", [1, 3, 40])
def test_merged_shards_are_what_one_process_writes(run, unbroken, tmp_path, count):
    out = tmp_path / "many" / "scores.jsonl"
    score_all_shards(run, out, count)
    ids = [json.loads(line)["id"] for part in out.parent.glob("*.jsonl") for line in part.open()]
    assert len(ids) == len(set(ids)) == NUM_CLIPS
    for _ in range(2):
        assert merge([str(out)]) == 0
        assert contents(out.parent) == contents(unbroken)
    run(out)  # and the ordinary command finds nothing to do
    assert contents(out.parent) == contents(unbroken)


def test_the_ordinary_command_merges_too_and_does_what_no_shard_did(run, unbroken, tmp_path):
    out = tmp_path / "many" / "scores.jsonl"
    run(out, "--shard", "2/3", status=0)
    run(out)
    assert contents(out.parent) == contents(unbroken)


def test_shards_of_other_machines_are_merged_from_where_they_lie(run, unbroken, tmp_path):
    for number in range(2):
        run(tmp_path / f"machine-{number}" / "scores.jsonl", "--shard", f"{number}/2", status=1 - number)
    parts = sorted(tmp_path.glob("machine-*/scores-*.jsonl"))
    out = tmp_path / "many" / "scores.jsonl"
    assert merge([str(out), *map(str, parts)]) == 0
    assert merge([str(out), *map(str, parts)]) == 0
    assert contents(out.parent) == contents(unbroken)
    assert all(part.is_file() for part in parts)


def test_a_shard_that_was_killed_goes_on_where_it_was(manifest, run, unbroken, scorer_dir, tmp_path):
    out = tmp_path / "many" / "scores.jsonl"
    part = out.parent / "scores-00000-of-00002.jsonl"
    slow = "import time; from whisq.scoring import collection as c; f = c.make_row\n"
    slow += "def g(*a): time.sleep(0.3); return f(*a)\nc.make_row = g; from whisq.cli import main; main()"
    arguments = ["score", str(manifest), "-o", str(out), "--model", str(scorer_dir), "--batch-seconds", "3"]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments, "--shard", "0/2"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not (part.is_file() and part.stat().st_size):
        time.sleep(0.002)
    process.kill()
    process.wait()
    before = part.read_bytes()
    assert before
    run(out, "--shard", "1/2", status=0)
    assert merge([str(out)]) == 2  # the first shard has not finished
    run(out, "--shard", "0/2")
    assert part.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert merge([str(out)]) == 0
    assert contents(out.parent) == contents(unbroken)


def test_shards_that_do_not_belong_together_are_refused(manifest, run, scorer_dir, tmp_path, capsys):
    out = tmp_path / "scores.jsonl"
    assert merge([str(out)]) == 2
    assert "there are no shards" in capsys.readouterr().err
    score_all_shards(run, out, 3)
    note = tmp_path / "scores-00001-of-00003.meta.json"
    told = json.loads(note.read_text())
    for change, message in (
        ({"scorer": "another"}, "made with other settings"),
        ({"finished": [10, "0"]}, "made of other clips"),
    ):
        note.write_text(json.dumps(told | change))
        assert merge([str(out)]) == 2
        assert message in capsys.readouterr().err
    note.write_text(json.dumps({name: value for name, value in told.items() if name != "finished"}))
    assert merge([str(out)]) == 2
    assert "shard 1/3 has not finished" in capsys.readouterr().err
    (tmp_path / "scores-00001-of-00003.jsonl").unlink()
    assert merge([str(out)]) == 2
    assert "shard 1/3 is missing" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("shard", ["4/4", "-1/4", "1", "a/b", "0/0", "1/²"])
def test_a_shard_out_of_range_is_refused(tmp_path, capsys, shard):
    with pytest.raises(SystemExit, match="2"):
        main(["score", str(tmp_path), "-o", "scores.jsonl", f"--shard={shard}"])
    assert "must be i/n with 0 <= i < n" in capsys.readouterr().err
