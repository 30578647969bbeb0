"""The page, without a browser: its fields become requests, and what was made comes back from the disk."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile


pytest.importorskip("gradio")
pytest.importorskip("matplotlib")
from fastapi.testclient import TestClient

from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.service.acceptance import Order
from pipelines.service.app import create_app, guarded
from pipelines.service.settings import ServiceSettings
from pipelines.studio.editing import ACTIONS, EditForm, find_action, middle_span
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
        "loop": False,
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


def orders(**changes):
    return [Order(request=request) for request in form(**changes).requests()]


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
    assert heard[10]["visible"]
    assert "Quality heard** 3.00 of 5" in done[3]
    wav, flac = (soundfile.read(done[2 + place]["value"])[0] for place in (3, 4))
    np.testing.assert_array_equal(wav, flac)
    takes = list_takes(studio.app.state.queue)
    assert [take.request.seed for take in takes] == [8, 7]
    choices = studio.page.list_choices(takes[1].key)
    assert [key for _, key in choices["choices"]] == [take.key for take in takes]
    assert choices["value"] == takes[1].key
    assert studio.page.show_old(takes[1].key)[0]["value"] == str(takes[1].path)
    fields = studio.page.restore_take(takes[1].key)
    assert (fields[0], fields[1], fields[4], fields[12]) == ("calm piano", pytest.approx(0.3), 3.5, 7)

    # What can be made of a take, and of what was made of it.
    *sent, tabs = studio.page.send("change", takes[0].key)
    assert (sent[:3], tabs.selected) == ([str(takes[0].path), "change", "calm piano"], "edit")
    *_, done = studio.page.edit(*vars(edit_form(recording=sent[0], action="change", strength=0.2)).values())
    assert "a recording, changed at strength 0.2" in done[3]
    take = list_takes(studio.app.state.queue)[0]
    assert take.recording.read_bytes() == takes[0].path.read_bytes()
    fields = studio.page.restore_take(take.key)[len(vars(form())) :]
    assert fields[:4] == [str(take.recording), "change", "calm piano", 3.5]
    assert (fields[6], fields[9], fields[10].selected) == (0.2, 7, "edit")


def edit_form(**changes):
    values = {
        "recording": "a.wav",
        "action": "continue",
        "prompt": "calm piano",
        "score": 3.5,
        "seconds": 1.0,
        "spans": "0.1-0.2, 0.3-0.4",
        "strength": 0.5,
        "steps": 2,
        "guidance": 3.5,
        "seed": 7,
    }
    return EditForm(**values | changes)


def test_fields_say_what_to_do_with_a_recording():
    requests = {action: edit_form(action=action).order().request for action in ACTIONS}
    for action, request in requests.items():
        assert find_action(request) == action
    assert requests["continue"].seconds == 1.0
    assert requests["repaint"].spans == [(0.1, 0.2), (0.3, 0.4)]
    assert requests["change"].strength == 0.5
    assert requests["restore"].guidance == 1.0
    assert middle_span(9.0) == "3-6"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recording": None}, "Choose a recording first"),
        ({"prompt": " "}, "Describe the music first"),
        ({"action": "remix"}, "Choose what to do with it, got 'remix'"),
        ({"action": "repaint", "spans": ""}, 'The parts must be seconds such as "2-4.5"'),
        ({"action": "repaint", "spans": "2 to 4"}, "got '2 to 4'"),
        ({"action": "repaint", "spans": "4-2"}, "each span ending after it begins"),
        ({"action": "change", "strength": 3}, "`strength` must be a number at least 0 and at most 1"),
    ],
)
def test_edits_that_make_no_sense_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        edit_form(**changes).order()


def test_what_is_no_recording_is_told_on_the_page(studio, tmp_path):
    import gradio

    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(gradio.Error, match="must be a wav, flac, ogg, mp3 or opus file"):
        next(studio.page.edit(*vars(edit_form(recording=str(tmp_path / "a.wav"))).values()))


def test_a_full_queue_takes_all_or_nothing(studio, monkeypatch):
    queue, go = studio.app.state.queue, threading.Event()

    def wait(requests, on_step):
        go.wait()
        return []

    monkeypatch.setattr(queue.engine, "make", wait)
    jobs = submit(orders(), queue, studio.page.settings)
    while jobs[0].status != "generating":
        go.wait(0.01)
    jobs += submit(orders(), queue, studio.page.settings)
    assert "number 2 in the queue" in describe_progress(jobs[1:], queue)
    with pytest.raises(ValueError, match="generations wait, and no more may"):
        submit(orders(compare="two seeds"), queue, studio.page.settings)
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
