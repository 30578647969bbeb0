"""No command writes over what it reads, over what it did not make, or into what another process writes."""

import argparse
import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import train_qamdt
from data_prep import build_manifest, degrade_corpus, label_quality, measure_music, render_corpus
from data_prep.latent_update import encode_corpus
from pipelines import assemble, cli
from qamdt.decoders.fitting import FitOptions, fit
from qamdt.files import claim, claim_folder
from qamdt.keyed_rows import KeyedRows, make_row
from qamdt.outputs import check_distinct, check_output, check_output_folder
from qamdt.settings import format_settings
from whisq import cli as whisq_cli
from whisq import train_clap
from whisq.scoring.rows import open_keyed_rows
from whisq.train import main as train_whisq_command
from whisq.train import train as train_whisq
from whisq.training.config import load_config


ROW = {
    "key": "0" * 16, "id": "a.wav", "status": "ok", "error": None, "flags": [], "overall_quality": 3.0, "scorer": "s",
    "source": "", "frame_hop_in_s": 0.5, "frame_overall_quality": [3.0, 3.0],
}  # fmt: skip
TEXT = b"what somebody wrote"


@pytest.fixture
def music(tmp_path):
    """A folder with two sounds, a manifest of them, scores, and whether anything of it has changed."""
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(ord(name)).normal(size=16_000), 16_000)
    lines = [{"id": f"{name}.wav", "path": f"{name}.wav", "duration_in_s": 1.0} for name in "ab"]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    rows = [ROW | {"id": f"{i}.wav", "overall_quality": 1.0 + i / 2} for i in range(8)]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_an_output_is_no_input_under_any_name(tmp_path):
    (tmp_path / "a").write_bytes(TEXT)
    (tmp_path / "link").symlink_to("a")
    for path in (tmp_path / "a", tmp_path / "link", tmp_path / "." / "x" / ".." / "a"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="is an input"):
            check_output(path, inputs=[None, tmp_path / "a"], is_ours=lambda path: True)
    with pytest.raises(FileExistsError, match="did not make it; give another output, or pass `--overwrite`"):
        check_output(tmp_path / "a", hint=", or pass `--overwrite`")
    with pytest.raises(FileExistsError, match="is a folder"):
        check_output(tmp_path / "x", is_ours=lambda path: True)
    check_output(tmp_path / "new", inputs=[tmp_path / "a", tmp_path / "gone"])
    check_output_folder(tmp_path / "x", ["*"], is_ours=False)
    check_output_folder(tmp_path, ["a"], is_ours=True)
    with pytest.raises(FileExistsError, match="holds 'a'"):
        check_output_folder(tmp_path, ["b", "a"], is_ours=False)
    with pytest.raises(FileExistsError, match="it is a file"):
        check_output_folder(tmp_path / "a", [], is_ours=True)
    check_distinct(tmp_path / "new", None, tmp_path / "a", tmp_path / "newer")
    for other in (tmp_path / "link", tmp_path / "x" / ".." / "a"):
        with pytest.raises(ValueError, match="would be written twice"):
            check_distinct(tmp_path / "a", tmp_path / "new", other)


@pytest.mark.parametrize(
    "command",
    [
        "score a.wav -o b.wav",
        "score m.jsonl -o m.jsonl",
        "score a.wav -o m.jsonl",
        "score a.wav -o text.jsonl",
        "score a.wav -o noted.jsonl",
        "score a.wav --prompts p.jsonl -o p.jsonl",
        "stats scores.jsonl -o scores.jsonl",
        "stats scores.jsonl -o m.jsonl",
        "filter scores.jsonl -o scores.jsonl --min-omq 2",
        "filter scores.jsonl -o scores.jsonl --min-omq 2 --overwrite",
        "filter scores.jsonl --manifest m.jsonl -o m.jsonl --min-omq 2 --overwrite",
        "filter scores.jsonl -o text.jsonl --min-omq 2",
        "finalize scores.jsonl --stats stats.json -o scores.jsonl",
        "finalize scores.jsonl --stats stats.json -o text.jsonl",
        "finalize scores.jsonl --stats stats.json -o stats.json",
        "finalize scores.jsonl --stats stats.json -o noted.parquet",
    ],
)
def test_whisq_refuses_what_is_not_its_own(music, monkeypatch, capsys, scorer_dir, command):
    monkeypatch.chdir(music)
    assert whisq_cli.main(["stats", "scores.jsonl", "-o", "stats.json"]) == 0
    assert whisq_cli.main(["stats", "scores.jsonl", "-o", "stats.json"]) == 0, "its own it replaces"
    for name in ("text.jsonl", "noted.meta.json", "noted.quality.json"):
        (music / name).write_bytes(TEXT)
    (music / "p.jsonl").write_text("a.wav\tpiano", encoding="utf-8")
    before = content(music)
    options = ["--model", str(scorer_dir)] if command.startswith("score") else []
    assert whisq_cli.main([*command.split(), *options]) in (1, 2)
    assert content(music) == before
    assert "error: " in capsys.readouterr().err


def test_rows_are_added_to_rows_alone(tmp_path):
    row = make_row(7, "a")
    for tail in (b"", b'{"key": "00', b'{"k', b'{"key": "0000000000000007", "id": "a', b'{"key": "0000000000000007"'):
        (tmp_path / "step.jsonl").write_bytes(tail)
        with KeyedRows(tmp_path, "step") as rows:
            rows.append(row)
        assert json.loads((tmp_path / "step.jsonl").read_text()) == row
    for text in (
        b'{"id": "a", "path": "a.wav"}',
        b'{"key": "A minor"',
        b"text",
        b'{"key": "0000000000000007x',
        b"RIFF",
    ):
        (tmp_path / "step.jsonl").write_bytes(text)
        with pytest.raises(ValueError, match="something else than results"):
            KeyedRows(tmp_path, "step").open()
        assert (tmp_path / "step.jsonl").read_bytes() == text


def test_commands_of_data_preparation_refuse_what_is_not_their_own(music, capsys):
    (music / "labelled.jsonl").write_bytes(TEXT)
    (music / "latents").mkdir()
    (music / "latents" / "index.json").write_text('{"pages": []}')
    (music / "new").mkdir()
    shutil.copy(music / "m.jsonl", music / "manifest.jsonl")
    before = content(music)
    label = ["--manifest", str(music / "m.jsonl"), "--scores", str(music / "scores.jsonl"), "--out"]
    assert label_quality.main([*label, str(music / "m.jsonl")]) == 2
    assert label_quality.main([*label, str(music / "labelled.jsonl")]) == 2
    measure = ["--manifest", str(music / "m.jsonl"), "--out"]
    (music / "other.measurements.jsonl").touch()  # so that it would be ours
    (music / "other.jsonl").hardlink_to(music / "m.jsonl")
    before |= {music / "other.jsonl": before[music / "m.jsonl"], music / "other.measurements.jsonl": b""}
    assert [measure_music.main([*measure, str(music / name)]) for name in ("m.jsonl", "other.jsonl")] == [2, 2]
    assert build_manifest.main([str(music)]) == 2
    assert build_manifest.main([str(music), "--out", str(music / "a.wav")]) == 2
    assert build_manifest.main([str(music), "--out", str(music / "m.jsonl"), "--table", str(music / "m.jsonl")]) == 2
    assert capsys.readouterr().err.count("error: ") == 7
    with pytest.raises(SystemExit, match="error: .*is an input"):
        degrade_corpus.main([str(music / "manifest.jsonl"), str(music)])
    with pytest.raises(FileExistsError, match=r"holds 'index\.json'"):
        encode_corpus(music / "m.jsonl", music / "latents")
    assert content(music) == before


def test_sound_in_the_way_is_refused(music):
    """A folder whose sound was made by others, or is what the command reads, keeps it."""
    for name in ("corpus", "others"):
        (music / name / "audio").mkdir(parents=True)
    (music / "others" / "audio" / "piece-000000-clean.flac").write_bytes(TEXT)
    (music / "others" / "audio" / "a.wav-v0.flac").write_bytes(TEXT)
    lines = [{"id": name, "path": f"audio/{name}.flac", "duration_in_s": 1.0} for name in ("a", "a-v0")]
    (music / "corpus" / "clean.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for line in lines:
        soundfile.write(music / "corpus" / line["path"], 0.1 * np.ones(16_000), 16_000)
    before = content(music)
    with pytest.raises(FileExistsError, match="which would be replaced"):
        degrade_corpus.degrade_corpus(music / "m.jsonl", music / "others")
    with pytest.raises(FileExistsError, match="which would be replaced"):
        degrade_corpus.degrade_corpus(music / "corpus" / "clean.jsonl", music / "corpus")
    (music / "corpus" / "progress.jsonl").touch()  # an earlier run has made other versions there
    before[music / "corpus" / "progress.jsonl"] = b""
    with pytest.raises(ValueError, match=r"a-v0\.flac', the sound of clip 'a-v0'"):
        degrade_corpus.degrade_corpus(music / "corpus" / "clean.jsonl", music / "corpus")
    assert content(music) == before


def test_rendering_refuses_what_it_did_not_make(tmp_path):
    if not render_corpus.DEFAULT_SOUNDFONT.is_file():
        pytest.skip("needs a soundfont")
    for name in ("audio/piece-000000-clean.flac", "settings.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(TEXT)
        with pytest.raises(FileExistsError, match="which would be replaced"):
            render_corpus.render_corpus(tmp_path, num_pieces=1)
        assert content(tmp_path) == {tmp_path / name: TEXT}
        (tmp_path / name).unlink()


def test_generating_refuses_what_it_did_not_make(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.generate._make", lambda *arguments, **options: made.append(arguments))
    made = []
    record = {"settings": {"prompt": "piano"}, "sound": {}, "models": {}, "versions": {}}
    for name in ("sound.wav", "noted.json", "picture.png", "mine.wav"):
        (tmp_path / name).write_bytes(TEXT)
    (tmp_path / "mine.json").write_text(json.dumps(record))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0001-piano.wav").write_bytes(b"half of a take that was killed")
    (tmp_path / "out" / "0002-drums.json").write_bytes(TEXT)
    (tmp_path / "one.txt").write_text("piano\n")
    (tmp_path / "two.txt").write_text("piano\ndrums\n")
    before = content(tmp_path)
    refused = ["piano -o sound.wav", "piano -o noted.wav", "piano -o new.wav --spectrogram picture.png"]
    refused += ["--request mine.json -o mine.wav", "--prompts two.txt --out-dir out"]
    for command in refused:
        assert cli.main(["generate", *command.split()]) == 1, command
        assert "error: " in capsys.readouterr().err
    for output in ("sound.wav", "noted.wav", "mine.flac"):
        assert cli.main(["restore", "mine.wav", "-o", output]) == 1
        assert "did not make it" in capsys.readouterr().err
    allowed = ["piano -o mine.wav", "--prompts one.txt --out-dir out", "piano -o new.wav"]
    for command in [*allowed, *(f"{command} --overwrite" for command in refused)]:
        assert cli.main(["generate", *command.split()]) == 0, command
        assert made.pop()
    for recording in ("mine.wav", "link.wav"):
        (tmp_path / "link.wav").unlink(missing_ok=True)
        (tmp_path / "link.wav").symlink_to("mine.wav")
        assert cli.main(["generate", "piano", "--init-audio", recording, "-o", "mine.wav", "--overwrite"]) == 1
    (tmp_path / "out" / "0001-piano.json").hardlink_to(tmp_path / "one.txt")
    assert cli.main(["generate", "--prompts", "one.txt", "--out-dir", "out", "--overwrite"]) == 1
    assert capsys.readouterr().err.count("is an input") == 3
    (tmp_path / "out" / "0001-piano.json").unlink()
    (tmp_path / "link.wav").unlink()
    for picture in ("new.wav", "new.json"):
        assert cli.main(["generate", "piano", "-o", "new.wav", "--spectrogram", picture, "--overwrite"]) == 1
        assert "would be written twice" in capsys.readouterr().err
    with claim_folder(tmp_path / "out"):
        assert cli.main(["generate", "--prompts", "one.txt", "--out-dir", "out"]) == 1
        assert "another process is writing" in capsys.readouterr().err
    assert not made
    assert content(tmp_path) == before


def test_an_evaluation_refuses_clips_that_it_did_not_make(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.evaluation.generation._make_missing", lambda *arguments: pytest.fail("made"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "songs").mkdir()
    (tmp_path / "p.md").write_text("piano\n")
    (tmp_path / "songs" / "0001-piano.json").write_bytes(TEXT)
    before = content(tmp_path)
    command = ["evaluate", "--model", "embedded", "--prompts", "p.md", "--seconds", "1", "--metrics", "tempo"]
    assert cli.main([*command, "-o", "p.json"]) == 1
    assert "is an input" in capsys.readouterr().err
    assert cli.main([*command, "--out-dir", "songs", "-o", "report.json"]) == 1
    assert "did not make it; give another output." in capsys.readouterr().err
    with claim_folder(tmp_path / "songs"):
        assert cli.main([*command, "--out-dir", "songs", "-o", "report.json"]) == 1
        assert "another process is writing" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_runs_refuse_folders_of_others(tmp_path, capsys):
    for name in ("export", "clap", "vae", "seed-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_bytes(TEXT)
    before = content(tmp_path)
    assert train_qamdt.main([f"run.output_dir={tmp_path}", f"data.latents={tmp_path.parent / 'latents'}"]) == 2
    assert train_clap.main(["--manifest", "none.jsonl", "--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("did not make it") == 2
    with pytest.raises(FileExistsError, match="holds 'vae'"):
        assemble.assemble(*(tmp_path.parent / "none" / name for name in "abc"), tmp_path, None)
    with pytest.raises(ValueError, match="which is written over"):
        assemble.assemble(tmp_path / "out" / "vae", tmp_path / "b", tmp_path / "c", tmp_path / "out", None)
    assert content(tmp_path) == before


def test_a_run_refuses_a_folder_before_it_prepares_its_music(music, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / "export" / "thesis.txt").write_bytes(TEXT)
    (run / "results.json").write_bytes(TEXT)
    before = content(music)
    assert train_qamdt.main([f"run.output_dir={run}", f"data.manifest={music / 'm.jsonl'}"]) == 2
    assert not (music / "latents").exists()
    assert train_whisq_command([f"run.output_dir={run}", f"data.manifest={music / 'm.jsonl'}", "--config=mini"]) == 2
    assert capsys.readouterr().err.count("did not make it") == 2
    (run / "config.yaml").write_text(format_settings(load_config("mini", ["run.output_dir=a", "data.manifest=b"])))
    before[run / "config.yaml"] = (run / "config.yaml").read_bytes()
    assert train_whisq_command([f"run.output_dir={run}", f"data.manifest={music / 'm.jsonl'}", "--config=mini"]) == 2
    assert "data.manifest" in capsys.readouterr().err
    assert content(music) == before


def test_a_second_writer_is_refused_by_name(music, capsys, scorer_dir, tmp_path):
    score = ["score", str(music / "m.jsonl"), "-o", str(music / "new.jsonl"), "--model", str(scorer_dir)]
    with open_keyed_rows(music / "new.jsonl"):
        assert whisq_cli.main(score) == 1
        assert "another process is writing" in capsys.readouterr().err
        assert not (music / "new.meta.json").exists()
    run = tmp_path / "run"
    options = FitOptions(output_dir=run, num_steps=1, learning_rate=1e-3)
    with claim_folder(run):
        assert train_qamdt.main([f"run.output_dir={run}", f"data.latents={tmp_path.parent / 'latents'}"]) == 2
        assert train_clap.main(["--manifest", "none.jsonl", "--output-dir", str(run)]) == 2
        assert capsys.readouterr().err.count("another process is writing") == 2
        with pytest.raises(RuntimeError, match="another process is writing"):
            fit(argparse.Namespace(), None, options, None)
        config = SimpleNamespace(run=SimpleNamespace(output_dir=str(run)))
        alone = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
        with pytest.raises(RuntimeError, match="another process is writing"):
            train_whisq(config, None, alone, None)
    with claim_folder(run):
        pass


def test_rows_that_are_replaced_stay_claimed(tmp_path):
    with KeyedRows(tmp_path, "step") as rows:
        for number in range(3):
            rows.append(make_row(number, str(number)))
        rows.replace_all([make_row(2, "2")])
        assert (len(rows), rows.read(2)["id"]) == (1, "2")
        with pytest.raises(RuntimeError, match="another process"):
            KeyedRows(tmp_path, "step").open()
        rows.append(make_row(5, "5"))
    with KeyedRows(tmp_path, "step") as rows:
        assert len(rows) == 2


def test_a_file_that_was_replaced_while_it_was_claimed_is_claimed_anew(tmp_path, monkeypatch):
    path = tmp_path / "rows"
    path.touch()
    replaced = threading.Event()

    def flock(file, how):
        if not replaced.is_set():
            replaced.set()
            (tmp_path / "other").write_bytes(b"other\n")
            (tmp_path / "other").replace(path)

    monkeypatch.setattr("qamdt.files.fcntl.flock", flock)
    with claim(path) as file:
        file.write(b"mine\n")
    assert path.read_bytes() == b"other\nmine\n"


def test_scores_that_were_doubled_become_one(music, scorer_dir):
    score = ["score", str(music / "m.jsonl"), "-o", str(music / "new.jsonl"), "--model", str(scorer_dir)]
    assert whisq_cli.main(score) == 0
    once = (music / "new.jsonl").read_bytes()
    (music / "new.jsonl").write_bytes(once + once)
    assert whisq_cli.main(score) == 0
    assert (music / "new.jsonl").read_bytes() == once
