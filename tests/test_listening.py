"""The listening test: its page in a real browser, its key, and what its answers say."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile

from pipelines.cli import main
from pipelines.evaluation.clip_rows import hear
from pipelines.listening.analysis import agreement, mean_rating, win_rate
from pipelines.listening.page import build_test, format_page
from pipelines.listening.stimuli import Stimulus
from qamdt.files import write_json
from whisq.scoring.clips import Clip


RATE = 16_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with two systems that have two items in common, and a reference."""
    monkeypatch.chdir(tmp_path)
    for number, system in enumerate(("ours", "base", "real")):
        (tmp_path / system).mkdir()
        for item in ("piano", "harp", system):
            noise = np.random.default_rng(number).normal(scale=0.05 * (number + 1), size=RATE // 2)
            soundfile.write(tmp_path / system / f"{item}.wav", noise, RATE)
    return tmp_path


def make(*arguments):
    """Writes a page and returns the exit status, what it holds, and its key."""
    status = main(["listening-test", "-o", "test.html", "--systems", "ours=ours", "base=base", *arguments])
    with open("test.html", encoding="utf-8") as file:
        page = file.read()
    data = re.search(r'<script id="test" type="application/json">(.*?)</script>', page, re.DOTALL).group(1)
    with open("test.key.json", encoding="utf-8") as file:
        return status, json.loads(data), json.load(file)


def answer_all(key, rate, listener="anna"):
    """The file that a page saves, with `rate(system, item)` for every sound."""
    rows = [
        {"trial": trial, "clip": clip, **rate(key["clips"][clip]["system"], key["clips"][clip]["item"])}
        for trial, clips in key["trials"].items()
        for clip in clips
    ]
    write_json(f"{listener}.json", {"test": key["id"], "listener": listener, "answers": rows})
    return f"{listener}.json"


def test_page_holds_every_sound_at_one_loudness_and_names_no_system(place, capsys):
    status, test, key = make("--reference", "real")
    assert status == 1  # each system has an item that the others lack
    assert capsys.readouterr().err.count("is not there in all systems") == 3
    systems = {clip["system"] for clip in key["clips"].values()}
    assert systems == {"ours", "base", "hidden reference", "anchor, 3.5 kHz", "anchor, 7 kHz"}
    assert len(test["trials"]) == len(test["sounds"]) == 2 * 5
    page = (place / "test.html").read_text()
    assert not re.search(r"https?://|\bours\b|\bbase\b|hidden reference\"", page)
    import base64
    import io

    levels = []
    for sound in test["sounds"].values():
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound.partition(",")[2])))
        assert rate == RATE
        levels.append(20 * np.log10(samples.std()))
    assert max(levels) - min(levels) < 6  # they differed by 9.5 dB, and by what loudness takes bands for


def test_same_seed_writes_the_same_test_and_another_one_needs_another_file(place, capsys):
    _, test, key = make()
    assert make()[1:] == (test, key)
    assert main(["listening-test", "-o", "test.html", "--systems", "ours=ours", "base=base", "--seed", "1"]) == 1
    assert "key of another test" in capsys.readouterr().err
    assert json.loads((place / "test.key.json").read_text()) == key
    for name in ("test.key.json", "test.html"):
        (place / name).unlink()
    _, other, other_key = make("--seed", "1")
    assert other["id"] != test["id"]
    assert other_key["clips"] != key["clips"]


def test_a_prompt_cannot_break_out_of_the_page():
    stimulus = Stimulus(system="a", item="1", prompt="</script><b>", sound="data:,")
    test, _ = build_test("mos", [stimulus], title="<i>", seed=0)
    page = format_page(test)
    assert "</script><b>" not in page
    assert "<h1>&lt;i&gt;</h1>" in page


@pytest.mark.parametrize("kind", ["mos", "mushra"])
def test_ratings_become_means_win_rates_and_agreement(place, kind, capsys):
    _, _, key = make("--reference", "real", "--kind", kind)
    values = {"ours": 4, "base": 2, "hidden reference": 5, "anchor, 3.5 kHz": 1, "anchor, 7 kHz": 2}

    def rate(system, item):
        if kind == "mushra":
            return {"score": 20 * values[system]}
        return {"quality": values[system], "relevance": None}

    files = [answer_all(key, rate, listener) for listener in ("anna", "ben")]
    assert main(["listening-test", "--analyse", *files, "--key", "test.key.json", "-o", "results.json"]) == 0
    report = json.loads((place / "results.json").read_text())
    scale, factor = ("score", 20) if kind == "mushra" else ("quality", 1)
    assert {name: figure["value"] for name, figure in report[scale]["means"].items()} == {
        name: factor * value for name, value in values.items()
    }
    assert report[scale]["means"]["ours"]["count"] == 4
    assert report[scale]["win_rates"]["ours above base"] == 1
    assert report[scale]["win_rates"]["base above anchor, 7 kHz"] == 0.5
    assert report[scale]["alpha"] == 1
    assert "Krippendorff" in capsys.readouterr().out


def test_a_listener_who_misses_the_hidden_reference_is_named(place):
    _, _, key = make("--reference", "real", "--kind", "mushra")
    files = [
        answer_all(key, lambda system, item: {"score": 100 if system == "hidden reference" else 40}, "anna"),
        answer_all(key, lambda system, item: {"score": 60}, "ben"),
    ]
    main(["listening-test", "--analyse", *files, "--key", "test.key.json", "-o", "results.json"])
    assert json.loads((place / "results.json").read_text())["missed_reference"] == ["ben"]


def test_abx_counts_who_told_x(place, capsys):
    _, test, key = make("--kind", "abx")
    assert {trial["x"] for trial in test["trials"]} <= key["clips"].keys()
    for trial in test["trials"]:
        assert trial["clips"]["AB".index(key["answers"][trial["id"]])] == trial["x"]
    rows = [{"trial": trial, "x": x} for trial, x in key["answers"].items()]
    write_json("a.json", {"test": key["id"], "listener": "anna", "answers": rows})
    rows = [{"trial": trial, "x": "B" if x == "A" else "A"} for trial, x in key["answers"].items()]
    write_json("b.json", {"test": key["id"], "listener": "ben", "answers": rows})
    assert main(["listening-test", "--analyse", "a.json", "b.json", "--key", "test.key.json"]) == 0
    assert "2 of 4 trials, 50%" in capsys.readouterr().out


def test_bad_answers_are_named_and_the_rest_counts(place, capsys):
    _, _, key = make()
    capsys.readouterr()
    good = answer_all(key, lambda system, item: {"quality": 3, "relevance": None})
    clip = next(iter(key["clips"]))
    trial = next(name for name, clips in key["trials"].items() if clip in clips)
    bad = [
        {"trial": "t99"},
        {"trial": trial, "clip": "c99", "quality": 3},
        {"trial": trial, "clip": clip, "quality": 9},
    ]
    write_json("bad.json", {"test": key["id"], "listener": "bad", "answers": bad})
    write_json("twice.json", {"test": key["id"], "listener": "anna", "answers": []})
    write_json("other.json", {"test": "0", "listener": "other", "answers": []})
    (place / "torn.json").write_text('{"listener"')
    files = [good, "bad.json", "twice.json", "other.json", "torn.json", "missing.json"]
    assert main(["listening-test", "--analyse", *files, "--key", "test.key.json"]) == 1
    output = capsys.readouterr()
    for word in ("no such trial", "no such sound", "from 1 to 5, got 9", "another file", "another test", "torn.json", "missing.json"):  # fmt: skip
        assert word in output.err
    assert "| ours | 3.00" in output.out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--systems", "ours=ours"), "-o FILE.html"),
        (("-o", "test.html", "--systems", "ours"), "NAME=PLACE"),
        (("-o", "test.html", "--systems", "a=ours", "a=base"), "name of its own"),
        (("-o", "test.html", "--systems", "a=ours", "--num-items", "0"), "num_items"),
        (("-o", "test.html", "--systems", "a=ours", "--key", "k"), "goes with --analyse"),
        (("--analyse", "a.json"), "--key must be"),
        (("--analyse", "a.json", "--key", "k", "--kind", "mos"), "--kind is for writing"),
    ],
)
def test_options_that_do_not_go_together_are_refused(place, capsys, arguments, word):
    assert main(["listening-test", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_systems_without_a_common_item_and_a_third_system_in_abx_are_refused(place, capsys):
    (place / "alone").mkdir()
    shutil.copy("ours/piano.wav", "alone/other.wav")
    assert main(["listening-test", "-o", "test.html", "--systems", "a=ours", "b=alone"]) == 1
    assert "no item in common" in capsys.readouterr().err
    assert main(["listening-test", "-o", "t.html", "--kind", "abx", "--systems", "a=ours", "b=base", "c=real"]) == 1
    assert "compares two systems" in capsys.readouterr().err


def test_figures_of_ratings_with_gaps():
    ratings = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, 5.0]])
    figure = mean_rating(ratings)
    assert figure.value == 2.75
    assert figure.count == 4
    assert figure.interval[0] < 2.75 < figure.interval[1]
    assert win_rate(ratings, np.full((2, 3), 2.0)) == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert agreement(ratings[:1]) is None
    # A worked example: two listeners, differences of squares 1 and 0, all pairs of 1, 2, 3, 3.
    two = np.array([[1.0, 3.0], [2.0, 3.0]])
    observed = np.mean([1.0, 0.0])
    expected = np.mean([(a - b) ** 2 for i, a in enumerate(two.ravel()) for j, b in enumerate(two.ravel()) if i != j])
    assert agreement(two) == pytest.approx(1 - observed / expected)


def test_silent_and_unreadable_items_are_left_out(place, capsys):
    soundfile.write("ours/piano.wav", np.zeros(RATE), RATE)
    status, test, _ = make("--kind", "abx")
    assert status == 1
    assert "'piano': the audio is silent" in capsys.readouterr().err
    assert len(test["trials"]) == 1
    assert hear(Clip(id="harp", path=place / "ours" / "harp.wav"))[1] == RATE


@pytest.fixture(scope="module")
def browser():
    """A real browser, without network."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to open the page with")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context(offline=True, accept_downloads=True)
        browser.close()


@pytest.mark.parametrize("kind", ["mos", "mushra", "abx"])
def test_page_is_answered_in_a_browser_and_its_file_analysed(place, browser, kind):
    _, test, key = make("--kind", kind)
    page = browser.new_page()
    page.goto(f"file://{place}/test.html")
    page.fill("#listener", "Anna")
    page.click("#begin")
    for number, _ in enumerate(test["trials"]):
        if number == 1:  # whoever reloads goes on where they were
            page.reload()
            page.fill("#listener", "Anna")
            page.click("#begin")
        assert page.is_disabled("#next")
        for button in page.query_selector_all("button.play"):
            button.click()
        for slider in page.query_selector_all("input[type=range]"):
            slider.fill("80")
        for choice in page.query_selector_all("input[value='1']"):
            choice.check()
        page.click("#next")
    with page.expect_download() as download:
        page.click("#save-json")
    download.value.save_as("answers.json")
    page.close()
    answers = json.loads((place / "answers.json").read_text())
    assert answers["listener"] == "Anna"
    assert {row["trial"] for row in answers["answers"]} == key["trials"].keys()
    assert main(["listening-test", "--analyse", "answers.json", "--key", "test.key.json"]) == 0
