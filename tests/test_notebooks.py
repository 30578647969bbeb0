"""The notebooks run, cell after cell, in an empty folder, and make what they say."""

import json
from pathlib import Path

import pytest
import soundfile


pytest.importorskip("IPython")
pytest.importorskip("matplotlib")
pytest.importorskip("peft")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "docs" / "notebooks"


def run(name):
    """Runs the code of a notebook and returns what its names hold in the end."""
    namespace = {}
    for number, cell in enumerate(json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb, cell {number}", "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


def test_first_steps(place):
    found = run("first-steps")
    low, high = found["both"].audios
    assert abs(low - high).max() > 0.01
    assert soundfile.info(place / "groove.wav").duration == pytest.approx(6)


def test_own_music(place):
    found = run("own-music")
    assert len(found["read_manifest"](place / "music" / "manifest.jsonl")) == 4
    assert (place / "runs" / "mine" / "export" / "pytorch_lora_weights.safetensors").is_file()
    assert found["output"].audios.shape == (1, 48_000)


def test_scoring_and_refining(place):
    found = run("scoring-and-refining")
    clean, damaged = (found["scores"][found[name].id] for name in ("clean", "damaged"))
    assert clean.overall_quality > damaged.overall_quality
    assert found["after"].captions[0] != found["before"].captions[0]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_printed(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
