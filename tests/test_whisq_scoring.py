"""Scoring collections: bad files become rows, killed jobs are completed, many processes write what one writes."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

from tests.ranks import run_ranks
from whisq.cli import main
from whisq.modeling_clap import MiniClap
from whisq.scorer import WhisQScorer
from whisq.scoring import collection
from whisq.scoring.clips import list_clips, probe_durations
from whisq.scoring.collection import (
    append_rows,
    row_key,
    score_group,
)
from whisq.scoring.plan import count_windows, load_windows, scoring_order
from whisq.scoring.rows import merge_rows, open_keyed_rows
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
    for clip in list_clips([music])[0]:
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


def test_a_long_clip_says_how_far_it_is(music, scorer_dir):
    clips = [clip for clip in probe_durations(list_clips([music])[0]) if clip.duration_in_s == 46]
    told = []
    loaded = load_windows(clips, [[0]], 31.0, 0)
    score_group(clips, [0], loaded, WhisQScorer.from_pretrained(scorer_dir), on_progress=told.append)
    assert told == [1] * count_windows(46.0) == [1, 1, 1]


def test_a_log_is_told_how_far_a_long_job_is(monkeypatch, capsys):
    monkeypatch.setattr(collection, "LOG_INTERVAL_IN_S", 0.05)
    with collection.progress_bar(3, is_hidden=False) as bar:
        for _ in range(3):
            time.sleep(0.06)
            bar.update()
    assert capsys.readouterr().err.count("scoring: ") >= 2
    monkeypatch.setattr(collection, "LOG_INTERVAL_IN_S", 60.0)
    for is_hidden in (True, False):
        with collection.progress_bar(3, is_hidden=is_hidden) as bar:
            bar.update(3)
    assert capsys.readouterr().err == "", "a short job says nothing before its end"


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
    score_group = collection.score_group

    def score_and_wait(*arguments, on_progress):
        while out.is_file() and out.stat().st_size:
            time.sleep(0.1)  # until the kill, however late it comes
        return score_group(*arguments, on_progress=on_progress)

    def run_and_wait():
        torch.set_num_threads(1)  # threads of the parent do not live on in a forked process
        monkeypatch.setattr(collection, "score_group", score_and_wait)
        run(out, music)

    process = multiprocessing.get_context("fork").Process(target=run_and_wait)
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
    clips = probe_durations(list_clips([music])[0])
    scorer = WhisQScorer.from_pretrained(scorer_dir)
    keys = [row_key(clip, scorer.describe(reads_prompts=True)) for clip in clips]

    def score_share(index, num_processes):
        shard = (index, num_processes)
        with open_keyed_rows(out, shard) as rows:
            return append_rows(rows, clips, keys, scorer, batch_seconds=3, shard=shard)["new"]

    assert 0 < score_share(2, 3) + score_share(0, 3) < 11  # process 1 of three died; two processes then do the rest
    with (tmp_path / "scores-00002-of-00003.jsonl").open("ab") as part:
        part.write('{"id": "été'.encode()[:-1])
    score_share(0, 2)
    score_share(1, 2)
    with open_keyed_rows(out) as rows:
        order = scoring_order(clips)
        merge_rows(rows, clips.ids[order], np.array(keys, np.uint64)[order])
    assert out.read_bytes() == unbroken.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]


def test_processes_of_torchrun_share_the_work(music, unbroken, run, tmp_path, capfd):
    out = tmp_path / "scores.jsonl"
    run_ranks(lambda: run(out, music) and sys.exit("failed"))
    said = capfd.readouterr().out
    assert "11 of 11 clips have scores" in said
    assert "0 kept, 0 scored again, 11 new." in said
    assert out.read_bytes() == unbroken.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"scores.jsonl", "scores.meta.json"}


def test_reading_in_a_process_of_its_own_changes_nothing(music, unbroken, run, tmp_path):
    assert run(tmp_path / "scores.jsonl", music, "--num-workers", "1") == 0
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
    soundfile.write(folder / "tick.wav", np.full(1, 0.5), 192_000)
    promising = bytearray((folder / "fine.flac").read_bytes())
    promising[21:26] = (int.from_bytes(promising[21:26], "big") | 2**36 - 1).to_bytes(5, "big")
    (folder / "promising.flac").write_bytes(promising)
    soundfile.write(folder / "cut.wav", noise(1.2, 5), RATE)
    os.truncate(folder / "cut.wav", 36_000)
    soundfile.write(folder / "empty.wav", np.zeros(0), RATE)
    names = sorted(path.name for path in folder.iterdir()) + ["missing.wav"]
    (folder / "list.txt").write_text("".join(f"{name}\tpiano\n" for name in names) + "", encoding="utf-8")
    (folder / "list.txt").write_text((folder / "list.txt").read_text().replace("short.wav\tpiano", "short.wav\t "))

    assert run(tmp_path / "scores.jsonl", folder / "list.txt") == 1
    rows = read(tmp_path / "scores.jsonl")
    assert rows.keys() == set(names)
    found = {name: (row["status"], row["flags"]) for name, row in rows.items()}
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
        "tick.wav": ("error", ["short"]),
        "half.flac": ("ok", ["short", "truncated"]),
        "promising.flac": ("ok", ["short", "truncated"]),
        "cut.wav": ("ok", ["truncated"]),
    }
    assert all((row["overall_quality"] is None) == (row["status"] == "error") for row in rows.values())
    captured = capsys.readouterr()
    assert "7 of 13 clips have scores" in captured.out
    assert "missing.wav: there is no file" in captured.err
    assert "3 clips are cut off" in captured.err

    before = (tmp_path / "scores.jsonl").read_bytes()
    for options, counts in (([], "13 kept, 0 scored again"), (["--retry-errors"], "7 kept, 6 scored again")):
        assert run(tmp_path / "scores.jsonl", folder / "list.txt", *options) == 1
        assert (tmp_path / "scores.jsonl").read_bytes() == before
        assert counts in capsys.readouterr().out

    soundfile.write(folder / "missing.wav", noise(1, 6), RATE)
    assert run(tmp_path / "scores.jsonl", folder / "list.txt") == 1
    again = read(tmp_path / "scores.jsonl")
    assert again.pop("missing.wav")["status"] == "ok"
    assert again == {name: row for name, row in rows.items() if name != "missing.wav"}


def test_lines_that_describe_no_clip_are_listed_and_the_rest_is_scored(music, run, tmp_path, capsys):
    lines = [f"{line}\n" for line in music.read_text(encoding="utf-8").split("\n")[:2]]
    bad = '{"id": "x", "path": "../outside.wav"}\n{"path": "0.wav", "captions": "one string"}\n'
    (music.parent / "some.jsonl").write_text(lines[0] + bad + lines[1], encoding="utf-8")
    assert run(tmp_path / "scores.jsonl", music.parent / "some.jsonl") == 1
    said = capsys.readouterr()
    assert "2 of 2 clips have scores" in said.out
    assert "some.jsonl, line 2: `path` must be relative and stay inside the manifest's folder" in said.err
    assert "some.jsonl, line 3: `captions` must be a list of strings, got a string" in said.err


def test_a_collection_that_was_moved_is_not_scored_again(music, run, tmp_path, capsys):
    lines = [f"{line}\n" for line in music.read_text(encoding="utf-8").split("\n")[:2]]
    (tmp_path / "here").mkdir()
    for name in ("0.wav", "1.wav"):
        shutil.copy2(music.parent / name, tmp_path / "here" / name)
    (tmp_path / "here" / "m.jsonl").write_text("".join(lines), encoding="utf-8")
    assert run(tmp_path / "scores.jsonl", tmp_path / "here" / "m.jsonl") == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert run(tmp_path / "scores.jsonl", tmp_path / "there" / "m.jsonl") == 0
    assert "2 kept, 0 scored again, 0 new." in capsys.readouterr().out


def test_scores_of_two_scorers_do_not_share_a_file(music, unbroken, scorer_dir, tmp_path, capsys):
    out = tmp_path / "scores.jsonl"
    out.write_bytes(unbroken.read_bytes())
    settings = json.loads(unbroken.with_suffix(".meta.json").read_text()) | {"scorer": "another@1"}
    out.with_suffix(".meta.json").write_text(json.dumps(settings))
    assert main(["score", str(music), "-o", str(out), "--model", str(scorer_dir)]) == 1
    assert "scores of different scorers do not mix" in capsys.readouterr().err


def test_what_has_changed_is_scored_again_and_the_rest_kept(scorer_dir, tmp_path, capsys):
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.wav", noise(1 + i / 10, i), RATE)

    def write_list(*prompts):
        lines = [f"{i}.wav\t{prompt}\n" for i, prompt in enumerate(prompts)]
        (tmp_path / "list.txt").write_text("".join(lines))

    def score(name, counts):
        assert main(["score", str(tmp_path / "list.txt"), "-o", str(tmp_path / name), "--model", str(scorer_dir)]) == 0
        assert counts in capsys.readouterr().out
        return read(tmp_path / name)

    write_list(*["calm piano"] * 6)
    first = score("scores.jsonl", "0 kept, 0 scored again, 6 new.")
    write_list("calm piano", "fast drums", *["calm piano"] * 4)  # other words
    soundfile.write(tmp_path / "3.wav", noise(1.3, 33), RATE)  # other sound of the same length
    second = score("scores.jsonl", "4 kept, 2 scored again, 0 new.")
    assert {name for name in first if first[name] != second[name]} == {"1.wav", "3.wav"}
    assert first["1.wav"]["text_alignment"] != second["1.wav"]["text_alignment"]
    assert first["1.wav"]["overall_quality"] == second["1.wav"]["overall_quality"]
    assert list(second) == list(first)
    assert score("fresh.jsonl", "6 new.") == second

    # Half of the clips were scored with other prompts when the run was killed, and then come the old prompts.
    write_list(*["fast drums"] * 6)
    third = score("other.jsonl", "6 new.")
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.writelines(json.dumps(third[name]) + "\n" for name in ("0.wav", "2.wav", "4.wav"))
    write_list("calm piano", "fast drums", *["calm piano"] * 4)
    assert score("scores.jsonl", "6 kept, 0 scored again, 0 new.") == second


def test_other_weights_under_the_same_name_are_another_scorer(scorer_dir, tmp_path, capsys):
    shutil.copytree(scorer_dir.parent, tmp_path / "scorer")
    config = (tmp_path / "scorer" / "whisq-tiny" / "config.json").read_text()
    config = config.replace(str(scorer_dir.parent), str(tmp_path / "scorer"))
    (tmp_path / "scorer" / "whisq-tiny" / "config.json").write_text(config)
    soundfile.write(tmp_path / "a.wav", noise(1, 0), RATE)
    command = ["score", str(tmp_path / "a.wav"), "-o", str(tmp_path / "scores.jsonl")]
    command += ["--model", str(tmp_path / "scorer" / "whisq-tiny")]
    assert main(command) == 0
    clap = MiniClap.from_pretrained(tmp_path / "scorer" / "clap")
    torch.nn.init.zeros_(clap.audio_tower.embed.bias)
    clap.save_pretrained(tmp_path / "scorer" / "clap")
    assert main(command) == 1
    assert "audio_encoder_sha256" in capsys.readouterr().err


def test_a_file_of_an_earlier_version_is_read_but_not_completed(music, unbroken, run, tmp_path, capsys):
    rows = [{name: value for name, value in row.items() if name != "key"} for row in read(unbroken).values()]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["stats", str(tmp_path / "scores.jsonl"), "-o", str(tmp_path / "stats.json")]) == 0
    assert run(tmp_path / "scores.jsonl", music) == 1
    assert "a file of an older version must be moved away" in capsys.readouterr().err
    (tmp_path / "scores.meta.json").write_text('{"format": 1, "scorer": "whisq-mini@1"}')
    assert run(tmp_path / "scores.jsonl", music) == 1
    assert "was written by another version" in capsys.readouterr().err


def test_two_jobs_do_not_write_one_file(music, unbroken, run, tmp_path, capsys):
    (tmp_path / "scores.jsonl").write_bytes(unbroken.read_bytes())
    with open_keyed_rows(tmp_path / "scores.jsonl"):
        assert run(tmp_path / "scores.jsonl", music) == 1
    assert "another process is writing" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("option", "value"), [("--batch-seconds", "0"), ("--num-workers", "-1"), ("--out", "scores.txt")]
)
def test_arguments_that_mean_nothing_are_refused(option, value, capsys):
    assert main(["score", "x.wav", "-o", "y.jsonl", option, value]) == 2
    assert f"{option} must be" in capsys.readouterr().err


def test_parsing_imports_nothing_slow():
    code = "import sys, whisq.cli as cli; cli.build_parser(); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
