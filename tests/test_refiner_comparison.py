"""Several language models, told their task in several wordings, refine one corpus and are compared."""

import json

import pytest
import torch

from benchmarks import refiner_agreement
from benchmarks.refiner_comparison import main
from benchmarks.refiner_throughput import running_server
from tests.refinable_clips import GIVEN, WordClap, write_clips


@pytest.fixture
def clap(monkeypatch):
    clap = WordClap()
    monkeypatch.setattr("data_prep.refine.step_runner.load_clap", lambda name, device: clap)
    monkeypatch.setattr(
        refiner_agreement, "sentence_embeddings", lambda texts: torch.from_numpy(clap.embed_text(texts))
    )
    return clap


def test_models_and_wordings_are_compared_at_the_price_of_one_hearing(clap, tmp_path, capsys, monkeypatch):
    manifest = write_clips(tmp_path)
    (tmp_path / "short.txt").write_text("Merge the captions of the next message.\n")
    heard = []
    embed_audio = clap.embed_audio
    monkeypatch.setattr(clap, "embed_audio", lambda *given: heard.append(1) or embed_audio(*given))
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    with (
        running_server("--answer", "Happy music.", "--log", str(logs[0])) as one,
        running_server("--answer", "Happy piano music.", "--log", str(logs[1])) as two,
    ):
        command = [str(manifest), "--models", f"one=script:ok@{one}", f"two=script:ok@{two}"]
        command += ["--tasks", str(tmp_path / "short.txt"), "--output", str(tmp_path / "report.json")]
        command += ["--", *GIVEN, "--timeout", "120"]
        assert main(command) == 0
        prompts = [[json.loads(line)["prompt"] for line in log.read_text().splitlines()] for log in logs]
        assert main(command) == 0, "what was answered is kept"
        assert [len(log.read_text().splitlines()) for log in logs] == [12, 12]
    assert len(heard) == 1, "six clips in one batch, heard for the first refiner alone"
    assert [len(set(asked)) for asked in prompts] == [12, 12], "six clips in two wordings"
    assert set(prompts[0]) == set(prompts[1])

    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["refiners"]) == [
        f"refined-{model}-{task}" for model in ("one", "two") for task in ("shipped", "short")
    ]
    assert all(row["clips"] == 6 and row["usage"]["requests"] == 6 for row in report["refiners"].values())
    differs = report["differs"]
    assert (differs["another model"]["pairs"], differs["another wording"]["pairs"]) == (2, 2)
    assert (differs["another model"]["same_words"], differs["another wording"]["same_words"]) == (0, 1)
    assert differs["another model"]["similarity"] < 1 == pytest.approx(differs["another wording"]["similarity"])
    assert "| another wording | 2 | 1.00 | 1.00 | 1.00 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "one=m@http://127.0.0.1:9/v1"], "name at least two `--models` or a `--tasks`"),
        (["--models", "one=m@http://127.0.0.1:9/v1", "one=n@http://127.0.0.1:9/v1"], "each with a name of its own"),
        (
            ["--models", "one=m@http://127.0.0.1:9/v1", "--tasks", "empty.txt"],
            "must be texts that say what to do, and 'empty.txt' is empty",
        ),
        (["--models", "one=m@http://127.0.0.1:9/v1", "--tasks", "shipped.txt"], "each with a name of its own"),
        (
            ["--models", "one=m@http://127.0.0.1:9/v1", "two=m@http://127.0.0.1:9/v1"],
            "one with the task 'shipped' stopped",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(clap, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "shipped.txt").write_text("Merge them.")
    write_clips(tmp_path)
    assert main(["manifest.jsonl", *arguments, "--", *GIVEN, "--max-tries", "1"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("model", ["one", "one=m", "=m@http://x/v1", "one=@http://x/v1", "a/b=m@http://x/v1"])
def test_models_are_named_with_their_address(model, capsys):
    with pytest.raises(SystemExit):
        main(["manifest.jsonl", "--models", model])
    assert "must be NAME=MODEL@ADDRESS" in capsys.readouterr().err
