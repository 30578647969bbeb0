"""Recordings over HTTP: sent along or named by address, changed, continued, made loops, restored, and refused."""

import base64
import io
import json
import threading

import numpy as np
import pytest
import soundfile


pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
from fastapi.testclient import TestClient

from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.request import GenerationRequest
from pipelines.service.app import create_app, guarded
from pipelines.service.errors import ServiceError
from pipelines.service.jobs import Job, JobFolder
from pipelines.service.settings import ServiceSettings
from pipelines.service.sound import check_sound
from pipelines.service.uploads import detach_sound


WAIT = {"prefer": "wait=60"}
RATE = 16_000


@pytest.fixture(scope="module")
def service(build_components, scorer_dir, tmp_path_factory):
    from whisq.scorer import WhisQScorer

    folder = tmp_path_factory.mktemp("service")
    QAMDTPipeline(**build_components()).save_pretrained(folder / "tiny")
    settings = ServiceSettings(
        folder=folder / "files", model=str(folder / "tiny"), max_upload_bytes=1 << 20, max_seconds=2, max_uploads=1
    )
    app = create_app(settings)
    with TestClient(guarded(app, settings)) as client, pytest.MonkeyPatch.context() as patch:
        load = WhisQScorer.from_pretrained
        patch.setattr(WhisQScorer, "from_pretrained", lambda *_, **options: load(scorer_dir, **options))
        client.queue = app.state.queue
        yield client


def noise(seconds=0.4, rate=RATE):
    return 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate))


def encode(samples, rate=RATE, file_format="WAV"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=file_format)
    return file.getvalue()


def sent(content, media_type="audio/wav"):
    return {"type": "audio", "base64": base64.b64encode(content).decode(), "media_type": media_type}


def ask(service, inputs, parameters=None, **fields):
    body = {"inputs": inputs, "parameters": {"steps": 2, "seed": 3} | (parameters or {}), **fields}
    return service.post("/v1/generations", json=body, headers=WAIT)


def fetch(service, response):
    assert response.status_code == 201, response.text
    (audio,) = response.json()["outputs"]["audio"]
    samples, record = (
        soundfile.read(io.BytesIO(service.get(audio["url"]).content))[0],
        service.get(audio["record_url"]),
    )
    return samples / 10 ** (record.json()["sound"]["gain_db"] / 20), record.json()  # as loud as it was made


def test_a_recording_is_changed(service):
    content = encode(noise(), file_format="FLAC")
    response = ask(service, {"prompt": "piano", "init_audio": sent(content)}, {"strength": 0.2})
    samples, record = fetch(service, response)
    assert len(samples) == 6400
    settings = record["settings"]
    assert (settings["init_audio"], settings["strength"], settings["plan_music"]) == ("recording.flac", 0.2, False)
    kept = service.get(f"/v1/generations/{response.json()['id']}/files/recording.flac")
    assert kept.content == content
    other, _ = fetch(service, ask(service, {"prompt": "piano", "init_audio": sent(content)}, {"strength": 1}))
    assert np.abs(samples - other).max() > 0.01


def test_what_was_made_is_continued_repainted_and_looped_by_its_address(service):
    made = ask(service, {"prompt": "piano"}, {"duration": 0.4, "fade_ms": 0})
    samples = soundfile.read(io.BytesIO(service.get(made.json()["outputs"]["audio"][0]["url"]).content))[0]
    piece = {"type": "audio", "url": made.json()["outputs"]["audio"][0]["url"]}
    longer, record = fetch(
        service, ask(service, {"prompt": "piano", "inpaint_audio": piece}, {"duration": 0.8, "fade_ms": 0})
    )
    assert len(longer) == 12_800
    np.testing.assert_allclose(longer[:5700], samples[:5700], atol=2e-3)  # but for the cross-fade at its end
    assert record["settings"]["inpaint_audio"] == "recording.wav"
    spans = {"inpaint_start": [0.1], "inpaint_end": [0.2], "fade_ms": 0}
    repainted, _ = fetch(service, ask(service, {"prompt": "piano", "inpaint_audio": piece}, spans))
    np.testing.assert_allclose(repainted[3900:], samples[3900:], atol=2e-3)
    assert np.abs(repainted[1700:3100] - samples[1700:3100]).max() > 1e-2
    looped, record = fetch(service, ask(service, {"prompt": "piano", "inpaint_audio": piece}, {"loop": True}))
    assert record["settings"]["loop"]
    assert len(looped) % 320 == 0
    looped, _ = fetch(service, ask(service, {"prompt": "piano"}, {"loop": True, "duration": 0.5}))
    assert len(looped) == 24 * 320


def test_a_recording_is_restored(service):
    response = ask(service, {"restore_audio": sent(encode(noise(0.6)))}, {"good_score": 5, "strength": 0.6})
    samples, record = fetch(service, response)
    assert len(samples) == 9600
    restoration = record["restoration"]
    assert (restoration["strength"], restoration["spans"]) == (0.6, [[0.0, 0.6]])
    assert (record["settings"]["guidance"], record["settings"]["fade_ms"]) == (1.0, 0.0)
    assert "/" not in record["settings"]["restore_audio"]


def lying_wav(seconds, promised):
    content = bytearray(encode(noise(seconds)))
    content[40:44] = (promised * 2 * RATE).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("inputs", "parameters", "status", "message"),
    [
        ({"init_audio": "a.wav"}, {}, 400, "`init_audio` must be an object of the type \"audio\""),
        ({"init_audio": {"type": "image", "url": "http://testserver/a"}}, {}, 400, "of the type"),
        ({"init_audio": {"type": "audio"}}, {}, 400, "must have `base64` and `media_type`, or `url`, got ['type']"),
        ({"init_audio": {"type": "audio", "base64": "AAAA"}}, {}, 400, "must have `base64` and `media_type`"),
        ({"init_audio": sent(b"")}, {}, 400, "must be a sound file in base64"),
        ({"init_audio": sent(b"abc") | {"base64": "A"}}, {}, 400, "The sound is not base64"),
        ({"init_audio": sent(b"abc") | {"base64": "***"}}, {}, 400, "must be a sound file in base64"),
        ({"init_audio": sent(b"abc") | {"base64": 3}}, {}, 400, "must be a sound file in base64"),
        ({"init_audio": sent(b"abc", "text/html")}, {}, 400, "`media_type` of `init_audio` must be such as"),
        ({"init_audio": sent(b"no sound at all")}, {}, 400, "must be a wav, flac, ogg, mp3 or opus file"),
        ({"init_audio": sent(encode(noise())[:44])}, {}, 400, "no sound that can be decoded"),
        ({"init_audio": sent(encode(np.zeros(RATE * 60), file_format="FLAC"))}, {}, 413, "at most 2 s long here"),
        ({"init_audio": sent(encode(np.zeros((100, 16))))}, {}, 400, "at most 8 channels, got 16000 and 16"),
        ({"init_audio": sent(encode(np.zeros(RATE)))}, {}, 400, "`audio` must be audible"),
        ({"init_audio": sent(encode(noise(0.01)))}, {}, 400, "`audio` must last from 0.1"),
        ({"init_audio": sent(encode(noise()))}, {"duration": 1}, 400, "has no parameter `duration`"),
        ({"init_audio": sent(encode(noise())), "inpaint_audio": {}}, {}, 400, "has no input `inpaint_audio`"),
        ({"inpaint_audio": sent(encode(noise()))}, {"audio_start": 1.9}, 400, "may last at most 2 seconds here, got 2.3"),
        ({"inpaint_audio": sent(encode(noise()))}, {"inpaint_start": [1]}, 400, "must hold as many seconds"),
        ({"inpaint_audio": sent(encode(noise()))}, {"inpaint_start": [5], "inpaint_end": [9]}, 400, "spans"),
        ({"restore_audio": sent(encode(noise()))}, {"bpm": 90}, 400, "The task 'restore' has no parameter `bpm`"),
        ({"init_audio": {"type": "audio", "url": 3}}, {}, 400, "`url` of `init_audio` must be an address"),
        ({"init_audio": {"type": "audio", "url": "file:///etc/passwd"}}, {}, 400, "others are not fetched"),
        ({"init_audio": {"type": "audio", "url": "http://169.254.169.254/v1/generations/a/files/b"}}, {}, 400, "not fetched"),
        ({"init_audio": {"type": "audio", "url": "http://testserver/v1/generations/../../../etc"}}, {}, 400, "not fetched"),
        ({"init_audio": {"type": "audio", "url": "http://testserver/v1/generations/gen_0/files/0.wav"}}, {}, 404, "gen_0"),
    ],
)  # fmt: skip
def test_recordings_that_make_no_sense_are_refused_and_leave_nothing(service, inputs, parameters, status, message):
    before = set(service.queue.jobs.folder.iterdir())
    response = ask(service, {"prompt": "piano"} | inputs if "restore_audio" not in inputs else inputs, parameters)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    assert str(service.queue.jobs.folder) not in response.text
    places = {path.parent for path in service.queue.jobs.folder.glob("*/job.json")}
    assert set(service.queue.jobs.folder.iterdir()) - before <= places  # what the model alone can refuse


def test_a_record_and_a_job_file_are_no_recording(service):
    made = ask(service, {"prompt": "piano"}, {"duration": 0.2}).json()
    for name in ("0.json", "job.json", "..", "0.wav/../job.json"):
        url = f"http://testserver/v1/generations/{made['id']}/files/{name}"
        response = ask(service, {"prompt": "piano", "init_audio": {"type": "audio", "url": url}})
        assert response.status_code in (400, 404)


def test_a_length_is_what_can_be_decoded(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(lying_wav(0.5, promised=100))
    assert check_sound(path, 2.0) == 0.5
    endless = bytearray(encode(np.zeros(RATE * 60), file_format="FLAC"))
    endless[21] &= 0xF0
    endless[22:26] = bytes(4)  # a stream that does not say how long it is
    path.write_bytes(endless)
    assert check_sound(path, 100.0) == pytest.approx(60, abs=0.1)
    with pytest.raises(ServiceError, match="at most 2 s long here, and it is longer"):
        check_sound(path, 2.0)


def test_the_sound_in_a_body_is_parsed_by_nobody():
    encoded = base64.b64encode(bytes(range(256)) * 1000).decode()
    body = json.dumps({"inputs": {"init_audio": {"base64": encoded}}}).encode()
    rest, content = detach_sound(body, 100)
    assert content == bytes(range(256)) * 1000
    assert json.loads(rest) == {"inputs": {"init_audio": {"base64": ""}}}
    assert detach_sound(body.replace(b"/", b"\\/"), 100)[1] == content
    assert detach_sound(b"{}", 100) == (b"{}", None)
    for large in (b"[" + b"0," * 100, body + b" " * 100, body.replace(b"init", b"x" * 100)):
        with pytest.raises(ServiceError, match="a sound in it not counted"):
            detach_sound(large, 100)


def test_large_bodies_are_few_and_bounded(service):
    content = json.dumps({"inputs": {"prompt": "piano", "init_audio": sent(encode(noise(1.9, 96_000), 96_000))}})
    assert len(content) > 1 << 16
    response = service.post("/v1/generations", content=b" " * (2 << 20))
    assert response.status_code == 413
    response = service.post("/v1/generations", content=b" " * (1 << 20))
    assert (response.status_code, "a sound in it not counted" in response.text) == (413, True)
    begun, go = threading.Event(), threading.Event()

    def slowly():
        begun.set()
        yield content[:1000].encode()
        go.wait(2)  # the test client may hold up all others until then
        yield content[1000:].encode()

    answers = []
    thread = threading.Thread(target=lambda: answers.append(service.post("/v1/generations", content=slowly())))
    thread.start()
    begun.wait(60)
    try:
        refused = service.post("/v1/generations", content=content)
    finally:
        go.set()
        thread.join(60)
    statuses = sorted([refused.status_code, answers[0].status_code])
    assert statuses in ([201, 429], [201, 201])  # the test client may hand the slow body over in one piece
    for answer in [refused, *answers]:
        if answer.status_code == 201:
            service.delete(f"/v1/generations/{answer.json()['id']}")


def test_a_recording_outlives_a_kill_and_what_was_half_received_does_not(tmp_path):
    jobs = JobFolder(tmp_path)
    job = Job(requests=[GenerationRequest(prompt="piano", init_audio="recording.wav")], status="generating")
    jobs.save(job)
    for name in ("recording.wav", "0.wav", ".0.wav.1.tmp"):
        (jobs.place(job) / name).touch()
    half = Job(requests=job.requests)
    (jobs.make_place(half) / "recording.sound").touch()
    (found,), bad = JobFolder(tmp_path).load()
    assert (found.recording, bad) == ("recording.wav", [])
    jobs.remove_results(found)
    assert {path.name for path in jobs.place(job).iterdir()} == {"job.json", "recording.wav"}
    assert not jobs.place(half).exists()
