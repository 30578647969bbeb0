"""Scoring collections: bad files become rows, killed jobs are completed, many processes write what one writes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from whisq import scoring
from whisq.cli import main
from whisq.clips import list_clips, probe_durations
from whisq.score_files import merge_parts
from whisq.scorer import WhisQScorer
from whisq.scoring import score_collection, scoring_order
from whisq.windows import cut_batches


RATE = 16_000


def noise(seconds, seed, rate=RATE, channels=1):
    return 0.2 * np.random.default_rng(seed).normal(size=(round(seconds * rate), channels)).clip(-2, 2)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Eleven clips of different lengths, one of several windows, with prompts in a manifest."""
    folder = tmp_path_factory.mktemp("music")
    lines = []
    for i, seconds in enumerate((0.5, 1, 31, 0.7, 2, 1, 1.5, 0.9, 1.1, 3, 46)):
        soundfile.write(folder / f"{i}.wav", noise(seconds, i), RATE)
        lines.append(
            {"id": f"clip-{i}", "path": f"{i}.wav", "captions": ["calm piano" if i % 2 else "été\u2028drums"]}
        )
    (folder / "manifest.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    return folder / "manifest.jsonl"


@pytest.fixture
def run(scorer_dir):
    def run(out, *inputs):
        return main(["score", *map(str, inputs), "-o", str(out), "--model", str(scorer_dir), "--batch-seconds", "3"])

    return run


@pytest.fixture(scope="module")
def unbroken(music, scorer_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "scores.jsonl"
    assert main(["score", str(music), "-o", str(out), "--model", str(scorer_dir), "--batch-seconds", "3"]) == 0
    return out


def read(out):
    return {row["id"]: row for row in map(json.loads, out.read_text(encoding="utf-8").split("\n")[:-1])}


def test_rows_hold_the_scores_of_the_clips(music, unbroken, scorer_dir):
    rows = read(unbroken)
    scorer = WhisQScorer.from_pretrained(scorer_dir)
    for clip in list_clips([music]):
        samples, _ = soundfile.read(clip.path, dtype="float32")
        expected = scorer.score(samples, RATE, clip.prompt)[0]
        row = rows[clip.id]
        assert row["overall_quality"] == pytest.approx(expected.overall_quality, abs=2e-4)
        assert row["text_alignment"] == pytest.approx(expected.text_alignment, abs=2e-4)
        assert row["frame_overall_quality"] == pytest.approx(expected.frame_overall_quality, abs=2e-3)
        assert (row["status"], row["prompt"], row["scorer"]) == ("ok", clip.prompt, scorer.name)
        assert row["duration_in_s"] == len(samples) / RATE
    assert [row["duration_in_s"] for row in rows.values()] == sorted(row["duration_in_s"] for row in rows.values())
    assert json.loads(unbroken.with_suffix(".meta.json").read_text())["scorer"] == scorer.name


def test_a_second_run_adds_nothing(music, unbroken, run):
    before = unbroken.read_bytes(), unbroken.stat().st_mtime_ns
    assert run(unbroken, music) == 0
    assert (unbroken.read_bytes(), unbroken.stat().st_mtime_ns) == before


@pytest.mark.parametrize("num_bytes_kept", [0, 10, 400, -1, -300, -900])
def test_a_job_that_stopped_anywhere_is_completed(music, unbroken, run, tmp_path, num_bytes_kept):
    (tmp_path / "scores.jsonl").write_bytes(unbroken.read_bytes()[:num_bytes_kept])
    assert run(tmp_path / "scores.jsonl", music) == 0
    assert (tmp_path / "scores.jsonl").read_bytes() == unbroken.read_bytes()


def test_kill_9_loses_and_repeats_nothing(music, unbroken, run, scorer_dir, tmp_path, monkeypatch):
    out = tmp_path / "scores.jsonl"
    score_group = scoring.score_group

    def slowly(*arguments):
        time.sleep(0.05)
        return score_group(*arguments)

    def run_slowly():
        torch.set_num_threads(1)  # threads of the parent do not live on in a forked process
        monkeypatch.setattr(scoring, "score_group", slowly)
        run(out, music)

    process = multiprocessing.get_context("fork").Process(target=run_slowly)
    process.start()
    while process.is_alive() and not (out.is_file() and out.stat().st_size):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 0 < out.stat().st_size < unbroken.stat().st_size
    assert run(out, music) == 0
    assert out.read_bytes() == unbroken.read_bytes()


def test_parts_of_many_processes_merge_to_what_one_writes(music, unbroken, scorer_dir, tmp_path):
    out = tmp_path / "scores.jsonl"
    clips = probe_durations(list_clips([music]))
    scorer = WhisQScorer.from_pretrained(scorer_dir)
    for index in (2, 0):  # process 1 of three died; two processes then do the rest
        score_collection(clips, scorer, out, batch_seconds=3, process_index=index, num_processes=3)
    with (tmp_path / "scores.jsonl.part-00002").open("ab") as part:
        part.write('{"id": "été'.encode()[:-1])
    for index in (0, 1):
        score_collection(clips, scorer, out, batch_seconds=3, process_index=index, num_processes=2)
    merge_parts(out, [clips[index].id for index in scoring_order(clips)])
    assert out.read_bytes() == unbroken.read_bytes()
    assert not list(tmp_path.glob("*part*"))


def test_processes_of_torchrun_share_the_work(music, unbroken, scorer_dir, tmp_path):
    out = tmp_path / "scores.jsonl"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "whisq.cli",
    ]
    command += ["score", str(music), "-o", str(out), "--model", str(scorer_dir), "--batch-seconds", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(scoring.__file__).parent.parent)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert out.read_bytes() == unbroken.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"scores.jsonl", "scores.meta.json"}


def test_reading_in_a_process_of_its_own_changes_nothing(music, unbroken, scorer_dir, tmp_path):
    clips = probe_durations(list_clips([music]))
    scorer = WhisQScorer.from_pretrained(scorer_dir)
    score_collection(clips, scorer, tmp_path / "scores.jsonl", batch_seconds=3, num_workers=1)
    assert (tmp_path / "scores.jsonl").read_bytes() == unbroken.read_bytes()


def test_bad_files_become_rows_and_the_rest_is_scored(run, tmp_path, capsys):
    folder = tmp_path / "music"
    folder.mkdir()
    soundfile.write(folder / "fine.flac", noise(1, 0), RATE)
    soundfile.write(folder / "wide.wav", noise(1, 1, rate=48_000, channels=8), 48_000)
    soundfile.write(folder / "narrow.wav", noise(1, 2, rate=8000), 8000)
    soundfile.write(folder / "short.wav", noise(0.1, 3), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    broken = noise(1, 4)
    broken[50] = np.nan
    soundfile.write(folder / "nan.wav", broken, RATE, subtype="FLOAT")
    (folder / "noise.mp3").write_bytes(b"this is no sound" * 50)
    (folder / "half.flac").write_bytes((folder / "fine.flac").read_bytes()[:9000])
    soundfile.write(folder / "empty.wav", np.zeros(0), RATE)
    names = sorted(path.name for path in folder.iterdir()) + ["missing.wav"]
    (folder / "list.txt").write_text("".join(f"{name}\tpiano\n" for name in names) + "", encoding="utf-8")
    (folder / "list.txt").write_text((folder / "list.txt").read_text().replace("short.wav\tpiano", "short.wav\t "))

    assert run(tmp_path / "scores.jsonl", folder / "list.txt") == 1
    rows = read(tmp_path / "scores.jsonl")
    assert rows.keys() == set(names)
    found = {name: (row["status"], row["flags"]) for name, row in rows.items()}
    assert found.pop("half.flac")[0] == "error"
    assert found == {
        "fine.flac": ("ok", []),
        "wide.wav": ("ok", ["multichannel"]),
        "narrow.wav": ("ok", ["low_sampling_rate"]),
        "short.wav": ("ok", ["short", "empty_prompt"]),
        "silent.wav": ("error", ["silent"]),
        "nan.wav": ("error", ["nan"]),
        "noise.mp3": ("error", ["unreadable"]),
        "missing.wav": ("error", ["unreadable"]),
        "empty.wav": ("error", ["short"]),
    }
    assert all((row["overall_quality"] is None) == (row["status"] == "error") for row in rows.values())
    captured = capsys.readouterr()
    assert "4 of 10 clips have scores" in captured.out
    assert "missing.wav: there is no file" in captured.err

    soundfile.write(folder / "missing.wav", noise(1, 6), RATE)
    before = (tmp_path / "scores.jsonl").read_bytes()
    assert run(tmp_path / "scores.jsonl", folder / "list.txt") == 1
    assert (tmp_path / "scores.jsonl").read_bytes() == before
    assert run(tmp_path / "scores.jsonl", folder / "list.txt", "--retry-errors") == 1
    again = read(tmp_path / "scores.jsonl")
    assert again["missing.wav"]["status"] == "ok"
    assert {name: row for name, row in again.items() if name != "missing.wav"} == {
        name: row for name, row in rows.items() if name != "missing.wav"
    }


def test_scores_of_two_scorers_do_not_share_a_file(music, unbroken, scorer_dir, tmp_path, capsys):
    out = tmp_path / "scores.jsonl"
    out.write_bytes(unbroken.read_bytes())
    settings = json.loads(unbroken.with_suffix(".meta.json").read_text()) | {"scorer": "another@1"}
    out.with_suffix(".meta.json").write_text(json.dumps(settings))
    assert main(["score", str(music), "-o", str(out), "--model", str(scorer_dir)]) == 1
    assert "scores of different scorers do not mix" in capsys.readouterr().err


def test_a_row_of_something_else_is_named(tmp_path, capsys):
    (tmp_path / "scores.jsonl").write_text('{"path": "a.wav"}\n')
    assert main(["stats", str(tmp_path / "scores.jsonl"), "-o", str(tmp_path / "stats.json")]) == 1
    assert "scores.jsonl, line 1: this is no row of `whisq score`" in capsys.readouterr().err


def test_batches_are_bounded_by_their_padded_length():
    lengths = [0.1, 0.2, 1, 2, 5, 5, 30, 30, 30]
    batches = cut_batches(lengths, 60)
    assert [list(batch) for batch in batches] == [[0, 1, 2, 3, 4, 5], [6, 7], [8]]
    assert all(len(batch) * max(lengths[i] for i in batch) <= 60 for batch in batches)
    assert [list(batch) for batch in cut_batches([30, 30], 10)] == [[0], [1]]
    assert cut_batches([], 10) == []


@pytest.mark.parametrize("command", ["train", "eval"])
def test_training_and_evaluation_have_parsers_of_their_own(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"usage: whisq {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [("--batch-seconds", "0"), ("--num-workers", "-1")])
def test_arguments_that_mean_nothing_are_refused(option, value, capsys):
    assert main(["score", "x.wav", "-o", "y.jsonl", option, value]) == 2
    assert f"{option} must be" in capsys.readouterr().err


def test_parsing_imports_nothing_slow():
    code = "import sys, whisq.cli as cli; cli.build_parser(); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
