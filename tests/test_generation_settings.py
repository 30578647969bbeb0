"""Settings of a call are compared over the prompts that both have made, and a stopped run goes on."""

import json

from benchmarks import generation_settings
from benchmarks.generation_settings import MEASURES, SETTINGS, format_table


def row(setting, prompt, value):
    return {"setting": str(setting), "prompt": prompt, "measured": dict.fromkeys(MEASURES, value)}


def test_a_difference_is_taken_over_common_prompts():
    first, second = SETTINGS[:2]
    rows = [
        row(first, "a", 1.0),
        row(first, "b", 2.0),
        row(second, "a", 2.0),
        row(second, "b", 4.0),
        row(second, "c", 9.0),
    ]
    lines = format_table(rows).splitlines()
    assert lines[2].startswith(f"| {first} | 2 | 1.5 |")
    assert lines[3].startswith(f"| {second} | 2 | 3 (+3.0) |")  # 1 and 2 more: 1.5, give or take 0.5


def test_a_stopped_run_makes_what_is_missing(pipe, tmp_path, monkeypatch):
    made = []

    def measure(pipe, clap, wanted, setting, seconds):
        made.append((wanted.text, str(setting)))
        return dict.fromkeys(MEASURES, 1.0)

    monkeypatch.setattr(generation_settings, "measure_clip", measure)
    monkeypatch.setattr(generation_settings, "load_clap", lambda: None)
    monkeypatch.setattr("pipelines.pipeline_qamdt.QAMDTPipeline.from_pretrained", lambda model: pipe)
    output = tmp_path / "settings.jsonl"
    command = ["--num-prompts", "2", "--output", str(output), "--only", str(SETTINGS[0]), str(SETTINGS[2])]
    generation_settings.main(command)
    assert len(made) == len(set(made)) == 4
    lines = output.read_text().splitlines()
    output.write_text("\n".join(lines[:3]) + "\n")
    generation_settings.main(command)
    assert len(made) == 5
    assert [json.loads(line) for line in output.read_text().splitlines()] == [json.loads(line) for line in lines]
