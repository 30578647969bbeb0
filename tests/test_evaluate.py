"""`qamdt evaluate`, run in process on short sounds: what it reports, what it keeps, and what it says of bad input."""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipelines.cli import main
from pipelines.evaluation import clip_rows, control
from pipelines.evaluation import run as evaluation_run
from pipelines.evaluation.quality_control import curve_followings, quality_responses
from pipelines.evaluation.wanted import wanted_of_text
from qamdt.files import write_json, write_json_lines


RATE = 16_000
EMBEDDER = '''
import numpy as np

def bands(samples, rate):
    """Level of eight bands of the spectrum."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    return np.log([part.mean() + 1e-6 for part in np.array_split(power, 8)])

def sometimes_nan(samples, rate):
    return bands(samples, rate) if np.abs(samples).max() > 0.5 else np.full(8, np.nan)

def classes(samples, rate):
    return bands(samples, rate)[:3]
'''


def tone(number, *, seconds=0.5, loudness=1.0):
    generator = np.random.default_rng(number)
    times = np.arange(round(seconds * RATE)) / RATE
    return loudness * (
        0.6 * np.sin(2 * np.pi * generator.uniform(100, 6000) * times) + 0.05 * generator.normal(size=len(times))
    )


def write_clips(folder, numbers):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        soundfile.write(folder / f"{number:04d}.wav", tone(number), RATE)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with an embedder of one's own and two folders of clips."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(EMBEDDER)
    write_clips(tmp_path / "generated", range(1, 13))
    write_clips(tmp_path / "real", range(101, 117))
    return tmp_path


def evaluate(*arguments, function="bands", draws=False):
    """Runs the command and returns its exit status and its report."""
    options = ["--embedder", f"mine.py:{function}", "-o", "report.json", "--num-resamples", "3"]
    options += [] if draws else ["--no-picture"]
    status = main(["evaluate", *options, *map(str, arguments)])
    with open("report.json", encoding="utf-8") as file:
        return status, json.load(file)


def forget():
    """Removes a report with all that was measured for it."""
    shutil.rmtree("report.rows")
    for path in Path().glob("report.*"):
        path.unlink()


DISTANCES = ("--metrics", "fad,kad,prdc")


def test_distances_come_with_intervals_and_real_music_beside_them(place):
    status, report = evaluate("--generated", "generated", "--reference", "real", *DISTANCES, draws=True)
    assert status == 0
    assert set(report["distribution"]) == {
        "FAD", "FAD-infinity", "KAD", "precision", "recall", "density", "coverage"
    }  # fmt: skip
    fad = report["distribution"]["FAD"]
    assert fad["figure"]["count"] == 12
    assert fad["reference_clips"] == 16
    low, high = fad["figure"]["interval"]
    assert low < fad["figure"]["value"] < high
    assert fad["same_size"]["clips"] == 8
    assert report["models"]["embedder"].startswith("mine.py:bands@")
    text = (place / "report.md").read_text()
    assert "| FAD | 12, 16 |" in text
    assert (place / "report.png").is_file()


def test_a_killed_run_goes_on_where_it_was_and_a_moved_folder_is_known(place, monkeypatch):
    command = ("--generated", "generated", "--reference", "real", *DISTANCES)
    _, whole = evaluate(*command)
    forget()
    heard = []
    hear = clip_rows.hear

    def hear_some(clip):
        heard.append(clip.path.name)
        if len(heard) == 7:
            raise KeyboardInterrupt
        return hear(clip)

    monkeypatch.setattr(clip_rows, "hear", hear_some)
    assert (
        main(["evaluate", "--embedder", "mine.py:bands", "-o", "report.json", "--num-resamples", "3", *command]) == 130
    )
    shutil.move("generated", "moved")
    _, again = evaluate("--generated", "moved", *command[2:])
    assert len(heard) == 7 + 28 - 6
    assert again["distribution"] == whole["distribution"]
    soundfile.write("moved/0003.wav", tone(99), RATE)
    evaluate("--generated", "moved", *command[2:])
    assert heard[-1] == "0003.wav"
    assert len(heard) == 30


def test_workers_change_nothing(place, monkeypatch):
    """The pool is one of threads here, as a process would import torch; what a process is sent is pickled all the same."""

    class Pool(ThreadPoolExecutor):
        def __init__(self, num_workers, mp_context, *, initializer, initargs):
            super().__init__(num_workers, initializer=initializer, initargs=pickle.loads(pickle.dumps(initargs)))

        def map(self, function, jobs, chunksize):
            return super().map(function, pickle.loads(pickle.dumps(jobs)))

    _, alone = evaluate("--generated", "generated", "--reference", "real", *DISTANCES)
    forget()
    monkeypatch.setattr(clip_rows, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    _, shared = evaluate("--generated", "generated", "--reference", "real", *DISTANCES, "--num-workers", 3)
    assert shared["distribution"] == alone["distribution"]


def test_classes_come_from_a_function_and_pairs_from_names(place):
    for number in range(1, 9):
        soundfile.write(f"real/{number:04d}.wav", tone(number), RATE)
    status, report = evaluate(
        "--generated", "generated", "--reference", "real", "--metrics", "is,kl", "--classifier", "mine.py:classes"
    )
    assert status == 0
    assert 1 < report["distribution"]["IS"]["figure"]["value"] <= 3
    assert report["distribution"]["KL"]["figure"] == {"value": 0.0, "interval": [0.0, 0.0], "count": 8}
    assert report["distribution"]["KL"]["exchanged"] > 0


def test_training_clips_that_come_back_are_named(place):
    training = write_clips(place / "training", range(201, 230))
    shutil.copy("generated/0005.wav", training / "copied.wav")
    arguments = (
        "--generated",
        "generated",
        "--reference",
        "real",
        "--training",
        "training",
        "--metrics",
        "memorising",
    )
    status, report = evaluate(*arguments)
    assert status == 0
    assert report["memorising"]["most_similar"][0] == ["0005.wav", "copied.wav", pytest.approx(1)]
    assert "copied.wav" in (place / "report.md").read_text()


def test_control_is_read_from_records_and_compared_with_what_is_known_of_the_reference(place, monkeypatch):
    for folder, numbers in (("long", range(1, 5)), ("known", range(101, 105))):
        (place / folder).mkdir()
        for number in numbers:
            soundfile.write(f"{folder}/{number:04d}.wav", tone(number, seconds=2), RATE)
    for number in range(1, 5):
        text = f"{('piano', 'harp')[number % 2]} in C major at 100 bpm"
        write_json(f"long/{number:04d}.json", {"settings": {"prompt": text, "quality": "high", "seed": number}})
    known = [
        {"id": f"r{n}", "path": f"{n:04d}.wav", "duration_in_s": 2, "key": "D minor", "tags": {"split": split}}
        for n, split in ((101, "test"), (102, "train"), (103, "test"), (104, "train"))
    ]
    write_json_lines("known/manifest.jsonl", known)
    status, report = evaluate(
        *("--generated", "long", "--reference", "known/manifest.jsonl", "--reference-tags", "split=test"),
        *("--metrics", "key,instrument"),
    )
    assert status == 0
    assert report["collections"]["reference"]["clips"] == 2
    own = report["clips"]["generated"]["key"]
    assert own["figure"]["count"] == 4
    assert own["floor"] == own["figure"]["value"]  # all were asked for one key
    assert report["clips"]["reference"]["key"]["figure"]["count"] == 2
    assert report["clips"]["generated"]["instrument by its timbre"]["floor"] == 0.5
    assert "key, weighted as MIREX does" in report["clips"]["generated"]

    for module in (control, evaluation_run):
        monkeypatch.setattr(module, "can_weight_keys", lambda: False)
    status, report = evaluate("--generated", "long", "--metrics", "key")
    assert status == 1
    assert "qamdt[evaluate]" in report["not_measured"]["key, weighted as MIREX does"]
    assert set(report["clips"]["generated"]) == {"key", "key, or its relative"}


@pytest.mark.parametrize(
    ("prompt", "instrument"),
    [
        ("piano in F sharp minor", "piano"),  # no harp
        ("electric piano, mellow", "electric piano"),
        ("harpsichord, baroque", "harpsichord"),
        ("cello and choir", None),
        ("big band swing", None),
    ],
)
def test_the_only_instrument_of_a_prompt_is_found(prompt, instrument):
    assert wanted_of_text(prompt).instrument == instrument


def test_quality_that_follows_what_is_asked_is_told_from_one_that_does_not():
    def clips(answer):
        asked = [(pair, quality) for pair in "ab" for quality in ("high", 1.5, 3.0, 4.5)]
        return [
            (replace(wanted_of_text("piano"), pair=pair, quality=quality), {"overall_quality": answer(quality)})
            for pair, quality in asked
        ]

    obedient = quality_responses(clips(lambda quality: 4.9 if quality == "high" else 1 + quality / 2))
    assert obedient == ([pytest.approx(1)] * 2, [pytest.approx(0.5)] * 2)  # the word is left out beside scores
    assert quality_responses(clips(lambda quality: 3.0))[0] == [0, 0]

    def curve(asked, heard):
        measured = {"curve": heard, "curve_hop_in_s": 0.5, "duration_in_s": 2.0}
        return replace(wanted_of_text("piano"), quality=asked), measured

    rising, falling = ((0.0, 1.0), (2.0, 5.0)), (5.0, 1.0)
    own, errors, exchanged = curve_followings(
        [curve(rising, [1.5, 2.5, 3.5, 4.5]), curve(falling, [4.5, 3.5, 2.5, 1.5]), curve(3.0, [3.0, 3.0, 3.0, 3.0])]
    )
    assert own == [pytest.approx(1)] * 2
    assert exchanged == [pytest.approx(-1)] * 2
    assert errors == [pytest.approx(0)] * 2


def test_prompts_are_read_from_a_file_and_those_without_clips_are_named(place):
    (place / "long").mkdir()
    soundfile.write("long/0001.wav", tone(1, seconds=2), RATE)
    soundfile.write("long/0002.wav", tone(2), RATE)
    (place / "prompts.tsv").write_text("0001.wav\tpiano in C major\n0099.wav\tharp\n0002\t \n")
    status, report = evaluate("--generated", "long", "--prompts", "prompts.tsv", "--metrics", "key,clap")
    assert status == 1
    faults = {fault["name"]: fault["reason"] for fault in report["faults"]}
    assert set(faults) == {"prompts.tsv, line 2", "prompts.tsv, line 3", "0002.wav"}
    assert "at least 2 s" in faults["0002.wav"]
    assert report["clips"]["generated"]["key"]["figure"]["count"] == 1
    assert "embedder knows no texts" in report["not_measured"]["clap"]


def test_bad_clips_are_named_and_counted_and_the_rest_is_done(place, capsys):
    soundfile.write("generated/0002.wav", np.zeros(RATE), RATE)
    soundfile.write("generated/0003.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    (place / "generated" / "0004.wav").write_bytes(b"no sound")
    soundfile.write("generated/0005.wav", np.zeros(0), RATE)
    soundfile.write("generated/0006.wav", tone(6, loudness=0.3), RATE)  # its embedding is NaN
    status, report = evaluate("--generated", "generated", "--reference", "real", *DISTANCES, function="sometimes_nan")
    assert status == 1
    assert "5 things were left out" in capsys.readouterr().err
    reasons = {fault["name"]: fault["reason"] for fault in report["faults"]}
    assert list(reasons) == [f"000{number}.wav" for number in range(2, 7)]
    assert "silent" in reasons["0002.wav"]
    assert "finite" in reasons["0003.wav"]
    assert "cannot be read" in reasons["0004.wav"]
    assert "holds no sound" in reasons["0005.wav"]
    assert "gave numbers that are not finite" in reasons["0006.wav"]
    assert report["distribution"]["FAD"]["figure"]["count"] == 7
    assert "## Left out: 5" in (place / "report.md").read_text()


@pytest.mark.parametrize(("numbers", "word"), [((), "0 that can be embedded"), ((101,), "1 that can be embedded")])
def test_an_empty_or_one_clip_reference_is_named_and_the_rest_is_done(place, numbers, word):
    shutil.rmtree("real")
    write_clips(place / "real", numbers)
    status, report = evaluate(
        *("--generated", "generated", "--reference", "real", "--metrics", "fad,kad,prdc,is"),
        *("--classifier", "mine.py:classes"),
    )
    assert status == 1
    assert set(report["not_measured"]) == {"fad", "kad", "prdc"}
    assert word in report["not_measured"]["fad"]
    assert set(report["distribution"]) == {"IS"}
    assert len(report["faults"]) == (not numbers)


def test_few_clips_get_the_distances_that_they_are_enough_for(place):
    shutil.rmtree("real")
    write_clips(place / "real", (101, 102, 103))
    status, report = evaluate("--generated", "generated", "--reference", "real", *DISTANCES)
    assert status == 1
    assert set(report["distribution"]) == {"FAD", "FAD-infinity", "KAD"}
    assert "more than 5 clips, got 3" in report["not_measured"]["prdc"]


def test_a_damaged_record_beside_a_clip_is_named(place):
    (place / "generated" / "0001.json").write_text("{")
    status, report = evaluate("--generated", "generated", "--reference", "real", *DISTANCES)
    assert status == 1
    assert report["faults"][0]["name"] == "0001.json"
    assert report["distribution"]["FAD"]["figure"]["count"] == 12


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--generated", "generated", "--metrics", "fid"), "metrics"),
        (("--generated", "generated", "--steps", "3"), "--steps goes with --model"),
        (("--generated", "generated", "--reference-tags", "a=1"), "goes with `reference`"),
        (("--generated", "generated", "--ceiling", "m"), "there is none"),
        (("--generated", "generated", "--num-resamples", "-1"), "num_resamples"),
        (("--generated", "generated", "--classes", "none.txt"), "does not exist"),
        (("--model", "m", "--prompts", "p", "--num-prompts", "3"), "goes without"),
        (("--model", "m", "--prompts", "none.txt"), "must be a file"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(place, capsys, arguments, word):
    assert main(["evaluate", "-o", "report.json", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_a_file_that_is_no_report_is_not_replaced(place, capsys):
    (place / "report.md").write_text("my notes")
    assert main(["evaluate", "-o", "report.json", "--generated", "generated", "--metrics", "fad"]) == 1
    assert "this command did not make it" in capsys.readouterr().err
    assert (place / "report.md").read_text() == "my notes"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--generated", "nowhere"), "does not exist"),
        (("--generated", "empty"), "nothing to score"),
        (("--generated", "generated", "--embedder", "mine.py:other"), "has no function"),
        (("--generated", "generated", "--embedder", "other.py:bands"), "does not exist"),
    ],
)
def test_places_and_embedders_that_are_not_there_are_named(place, capsys, arguments, word):
    (place / "empty").mkdir()
    assert main(["evaluate", "-o", "report.json", "--metrics", "fad", *arguments]) == 1
    assert word in capsys.readouterr().err


def test_a_model_is_asked_for_levels_and_curves_and_its_clips_are_kept(pipe_dir, scorer_dir, place, capsys):
    (place / "prompts.txt").write_text("calm piano\nfast drums\n")
    command = ("--model", pipe_dir, "--prompts", "prompts.txt", "--steps", 1, "--seconds", 1.6, "--scorer", scorer_dir)
    status, report = evaluate(*command, "--metrics", "whisq,quality,curve")
    assert status == 0
    assert len(list((place / "report.clips").glob("*.wav"))) == 2 * (1 + 5 + 2)
    assert [asked for asked, _, _ in report["response"]] == [1.5, 2.7, 3.4, 4.1, 4.8]
    rows = report["clips"]["generated"]
    assert rows["rank correlation of asked and heard quality"]["figure"]["count"] == 2
    assert rows["correlation with the quality curve"]["figure"]["count"] == 4
    assert rows["WhisQ quality"]["figure"]["count"] == 2
    times = {path: path.stat().st_mtime_ns for path in (place / "report.clips").iterdir()}
    capsys.readouterr()
    _, again = evaluate(*command, "--metrics", "whisq,quality,curve")
    assert {path: path.stat().st_mtime_ns for path in (place / "report.clips").iterdir()} == times
    assert again["clips"] == report["clips"]


def test_clips_after_an_autoencoder_stand_beside_the_reference(pipe_dir, place):
    status, report = evaluate(
        "--generated", "generated", "--reference", "real", "--metrics", "fad", "--ceiling", pipe_dir
    )
    assert status == 0
    assert report["distribution"]["FAD"]["same_size"]["reconstructed"] > 0
