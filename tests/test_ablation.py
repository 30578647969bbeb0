"""Ablations from one file of settings: equal budgets, kept results, a table with intervals."""

import json

import pytest
import yaml

from benchmarks import ablation
from tests.tiny_training import MODEL


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def settings(tmp_path, write_noise, monkeypatch):
    """A file of settings for runs of two updates, three variants of which two are one run."""
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / "latents", [16] * 4)
    write_noise(tmp_path / "held_out", [16] * 6, caption="other")
    base = {
        "model": MODEL,
        "data": {"latents": "latents", "crop_in_frames": 16, "num_workers": 0},
        "optim": {"warmup_steps": 1, "ema_decay": 0.5},
        "run": {"output_dir": "unused", "batch_size": 2, "max_steps": 2},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    values = {
        "config": "base.yaml",
        "held_out": "held_out",
        "output_dir": "runs",
        "repeats": 1,
        "variants": [
            {"name": "both", "group": "Passes"},
            {"name": "full alone", "group": "Passes", "overrides": ["loss.passes=full"]},
            {"name": "as in the first group", "group": "Quality"},
        ],
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "settings.yaml"


def test_variants_train_once_and_are_compared_clip_by_clip(settings, tmp_path, monkeypatch, capsys):
    assert ablation.main([str(settings)]) == 0
    text = (tmp_path / "runs" / "ablation.md").read_text()
    assert text.count("\n## ") + text.startswith("## ") == 2
    rows = [json.loads(line) for line in (tmp_path / "runs" / "results.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["both, seed 0", "full alone, seed 0"]  # the third is the first
    assert all(len(row["losses"]["given"]) == 6 and row["steps"] == 2 for row in rows)
    assert rows[0]["losses"]["given"] != rows[1]["losses"]["given"]
    line = next(line for line in text.splitlines() if line.startswith("| full alone"))
    difference = sum(rows[0]["losses"]["given"]) / 6 - sum(rows[1]["losses"]["given"]) / 6
    assert f"{difference:+.4f} [" in line

    trained = []
    train = ablation.train
    monkeypatch.setattr(
        ablation, "train", lambda config, stop: trained.append(config.loss.passes) or train(config, stop)
    )
    assert ablation.main([str(settings)]) == 0
    assert not trained
    changed = yaml.safe_load(settings.read_text())
    changed["variants"][1]["overrides"] = ["loss.passes=masked"]
    changed["variants"][1]["name"] = "masked alone"
    settings.write_text(yaml.safe_dump(changed))
    assert ablation.main([str(settings)]) == 0
    assert trained == ["masked"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"overrides": ["run.max_steps=3"]}, "same budget"),
        ({"overrides": ["loss.passes=none"]}, "passes"),
        ({"name": "Both"}, "name of its own"),
        ({"overrides": ["data.latents=nowhere"]}, "no encoded music"),
    ],
)
def test_settings_that_make_no_ablation_are_refused(settings, capsys, change, word):
    values = yaml.safe_load(settings.read_text())
    values["variants"][1] |= change
    settings.write_text(yaml.safe_dump(values))
    assert ablation.main([str(settings)]) == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny.yaml", "patches_of_four.yaml"])
def test_the_shipped_settings_name_runs_of_one_budget(name):
    path = ablation.Path(ablation.__file__).parent / "ablations" / name
    settings = ablation.load_settings(ablation.AblationSettings, path)
    runs = ablation.plan_runs(settings)
    assert len(runs) == len(settings.variants) * len(settings.seeds)
    assert len({config.run.output_dir for config in runs.values()}) == len(runs)
    assert {config.loss.passes for config in runs.values()} >= {"alternate", "full", "masked"}
