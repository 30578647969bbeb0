"""The comparison of refiners, on captions whose faults and agreement are known."""

import json

import pytest
import torch

from benchmarks import refiner_agreement
from benchmarks.refiner_agreement import find_faults, main, stated_facts
from qamdt.files import write_json_lines
from qamdt.manifest import Record


KNOWN = {
    "path": "a.wav",
    "duration_in_s": 1.0,
    "tempo_bpm": 90,
    "key": "Bb major",
    "tags": {"instruments": ["grand piano"], "ensemble": None},
    "captions": ["slow piano"],
}
RIGHT = "Slow piano music in A# major at 90 bpm."


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two refined manifests, of which the second is wrong about every other clip; sentences are bags of letters."""

    def embed(texts):
        counts = torch.tensor(
            [[text.lower().count(letter) for letter in "abcdefghijklmnop"] for text in texts]
        ).float()
        return torch.nn.functional.normalize(counts, dim=-1)

    monkeypatch.setattr(refiner_agreement, "sentence_embeddings", embed)
    wrong = "Violin music in A minor at 120 bpm."
    for name, captions in (("one", [RIGHT] * 4), ("two", [RIGHT, wrong] * 2)):
        rows = [
            KNOWN | {"id": f"{i}", "captions": [text], "caption_source": "fused"} for i, text in enumerate(captions)
        ]
        rows[3]["caption_source"] = "fallback"
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
        (tmp_path / name / "steps").mkdir(parents=True)
        usage = {"input_tokens": 100, "output_tokens": 10, "requests": 1}
        write_json_lines(tmp_path / name / "steps" / "fuse.jsonl", [{"usage": usage}] * 4)
    return tmp_path


def test_faults_agreement_and_cost_are_counted(folder, capsys):
    prices = ["--input-price", "1", "--output-price", "10"]
    assert (
        main([str(folder / "one.jsonl"), str(folder / "two.jsonl"), "--output", str(folder / "r.json"), *prices]) == 0
    )
    report = json.loads((folder / "r.json").read_text())
    assert report["refiners"]["one"]["with_faults"]["value"] == 0
    assert report["refiners"]["two"]["with_faults"]["value"] == 0.5
    assert [report["refiners"]["two"][f"wrong_{kind}"] for kind in ("tempo", "key", "instrument")] == [2, 2, 2]
    assert report["refiners"]["one"]["fallbacks"] == 1
    assert report["refiners"]["one"]["cost"] == pytest.approx((400 + 40 * 10) / 1e6)
    pair = report["pairs"]["one and two"]
    assert pair["same_facts"]["value"] == 0.5
    assert pair["same_words"]["value"] == 0.5
    assert pair["similarity"]["value"] < 1
    assert "one and two" in capsys.readouterr().out


def test_what_is_not_known_is_no_fault_and_spelling_is_none():
    record = Record.from_dict(KNOWN | {"id": "a"})
    assert find_faults(RIGHT, record) == []
    assert find_faults("Music in B minor with drums", Record(id="a", path="a.wav", duration_in_s=1.0)) == []
    assert stated_facts("Piano in Bb major at 90 bpm") == stated_facts("90 bpm, A# major, pianos")


@pytest.mark.parametrize(
    "names", [["one.jsonl"], ["one.jsonl", "one.jsonl"], ["one.jsonl", "raw.jsonl"], ["no.jsonl", "one.jsonl"]]
)
def test_manifests_that_cannot_be_compared_are_refused(folder, capsys, names):
    write_json_lines(folder / "raw.jsonl", [KNOWN | {"id": "a"}])
    assert main([str(folder / name) for name in names]) == 2
    assert "error:" in capsys.readouterr().err
