"""The page, without a browser: its fields become requests, and what was made comes back from the disk."""

import json
import threading
from types import SimpleNamespace

import pytest


pytest.importorskip("gradio")
pytest.importorskip("matplotlib")
from fastapi.testclient import TestClient

from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.service.app import create_app, guarded
from pipelines.service.settings import ServiceSettings
from pipelines.studio.history import list_takes
from pipelines.studio.making import COMPARISONS, Form, describe_progress, describe_score, submit
from pipelines.studio.page import Studio, mount_studio
from pipelines.studio.quality_curve import START, from_quality, to_quality


@pytest.fixture(scope="module")
def studio(build_components, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    QAMDTPipeline(**build_components()).save_pretrained(folder / "tiny")
    settings = ServiceSettings(folder=folder / "files", model=str(folder / "tiny"), max_waiting=2)
    app = create_app(settings)
    client = TestClient(guarded(mount_studio(app), settings))
    page = Studio(app.state.queue, settings, app.state.scoring)
    page.build()
    yield SimpleNamespace(client=client, page=page, app=app)
    app.state.queue.close(30)


def form(**changes):
    values = {
        "prompt": "calm piano",
        "seconds": 0.3,
        "is_curve": False,
        "score": 3.5,
        "curve": json.dumps(START),
        "bpm": "",
        "key": "",
        "chords": "",
        "compare": COMPARISONS[0],
        "steps": 2,
        "guidance": 3.5,
        "seed": 7,
        "negative_prompt": "",
    }
    return Form(**values | changes)


def test_fields_become_requests():
    (request,) = form().requests()
    assert (request.prompt, request.quality, request.seed, request.bpm) == ("calm piano", 3.5, 7, None)
    (request,) = form(is_curve=True, seconds=10, bpm=" 90 ", key="A minor", chords="Am F").requests()
    assert (request.quality[0], request.quality[-1]) == ((0.0, 2.0), (10.0, 4.5))
    assert (request.bpm, request.key, request.chords) == (90, "A minor", "Am F")
    assert [take.seed for take in form(compare="two seeds").requests()] == [7, 8]
    pair = form(compare="low and high quality").requests()
    assert [(take.quality, take.seed) for take in pair] == [("low", 7), ("high", 7)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "Describe the music first"),
        ({"bpm": "fast"}, "The tempo must be a number of beats a minute, got 'fast'"),
        ({"bpm": "900"}, "`bpm` must be a number from 40 to 220"),
        ({"is_curve": True, "curve": "{"}, "The drawn curve cannot be read"),
        ({"is_curve": True, "curve": "[[0, 9]]"}, "`quality` must hold scores from 1 to 5"),
    ],
)
def test_fields_that_make_no_sense_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        form(**changes).requests()


def test_a_curve_comes_back_as_it_was_drawn():
    assert json.loads(from_quality(to_quality(json.dumps(START), 8.0), 8.0)) == START
    assert json.loads(from_quality([2.0, 4.5], 5.0))[-1] == [1.0, 4.5]


def test_two_takes_are_made_and_stand_in_the_history(studio, monkeypatch):
    score = {
        "error": None,
        "overall_quality": 3.0,
        "text_alignment": 2.0,
        "flags": ("short",),
        "scorer": "tiny",
        "frame_overall_quality": (3.0, 3.5),
        "frame_hop_in_s": 0.15,
    }
    monkeypatch.setattr(studio.page.scoring, "score_file", lambda path, prompt: score)
    wanted = form(compare="two seeds")
    *_, heard, done = studio.page.make(*vars(wanted).values())
    assert "Done" in done[0]
    assert heard[2]["value"].endswith("0.wav")
    assert heard[7]["visible"]
    assert "Quality heard** 3.00 of 5" in done[3]
    takes = list_takes(studio.app.state.queue)
    assert [take.request.seed for take in takes] == [8, 7]
    choices = studio.page.list_choices(takes[1].key)
    assert [key for _, key in choices["choices"]] == [take.key for take in takes]
    assert choices["value"] == takes[1].key
    assert studio.page.show_take(takes[1].key)[0]["value"] == str(takes[1].path)
    *fields, _ = studio.page.restore_take(takes[1].key)
    assert (fields[0], fields[1], fields[3], fields[11]) == ("calm piano", pytest.approx(0.3), 3.5, 7)


def test_a_full_queue_takes_all_or_nothing(studio, monkeypatch):
    queue, go = studio.app.state.queue, threading.Event()

    def wait(requests, on_step):
        go.wait()
        return []

    monkeypatch.setattr(queue.engine, "make", wait)
    jobs = submit(form().requests(), queue, studio.page.settings)
    while jobs[0].status != "generating":
        go.wait(0.01)
    jobs += submit(form().requests(), queue, studio.page.settings)
    assert "number 2 in the queue" in describe_progress(jobs[1:], queue)
    with pytest.raises(ValueError, match="generations wait, and no more may"):
        submit(form(compare="two seeds").requests(), queue, studio.page.settings)
    assert queue.num_waiting == 1
    go.set()


def test_the_page_asks_nobody_else_for_anything(studio):
    page = studio.client.get("/").text
    assert "QA-MDT studio" in page
    loaded = [part.split('"')[0] for part in page.split('src="')[1:] + page.split('href="')[1:]]
    assert not [address for address in loaded if address.startswith(("http:", "https:", "//"))]
    config = studio.client.get("/config").json()
    assert config["analytics_enabled"] is False


def test_files_of_the_machine_are_not_for_the_page(studio):
    for path in ("/etc/passwd", str(studio.page.settings.folder / "lock"), "../lock"):
        assert studio.client.get(f"/gradio_api/file={path}").status_code in (403, 404)
    large = studio.client.post("/gradio_api/upload", headers={"content-length": str(1 << 32)})
    assert large.status_code == 413


def test_scores_are_told_in_words():
    nothing = {"error": "the audio is silent"}
    assert describe_score(nothing) == "**No score**: the audio is silent."
