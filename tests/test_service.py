"""The service, in process, with a tiny model: what it answers, what it refuses, and what a restart finds."""

import io
import json
import threading
import time

import numpy as np
import pytest
import soundfile


pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
from fastapi.testclient import TestClient

from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.request import GenerationRequest
from pipelines.service.app import create_app, guarded
from pipelines.service.engine import Cancelled, Engine
from pipelines.service.errors import ServiceError
from pipelines.service.generation_queue import GenerationQueue
from pipelines.service.jobs import Job, JobFolder
from pipelines.service.settings import ServiceSettings, allowed_hosts


WAIT = {"prefer": "wait=60"}
PIANO = {"inputs": {"prompt": "calm piano"}, "parameters": {"steps": 2, "duration": 0.2, "seed": 3}}


@pytest.fixture(scope="module")
def model_dir(build_components, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    QAMDTPipeline(**build_components()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def service(model_dir, tmp_path_factory):
    settings = ServiceSettings(
        folder=tmp_path_factory.mktemp("service"),
        model=str(model_dir),
        max_waiting=3,
        max_upload_bytes=1 << 20,
        max_upload_seconds=20,
        hosts=("testserver",),
    )
    app = create_app(settings)
    with TestClient(guarded(app, settings)) as client:
        client.queue = app.state.queue
        yield client


@pytest.fixture
def held(service, monkeypatch):
    """Lets no job begin its work until the event is set."""
    go, make = threading.Event(), service.queue.engine.make

    def wait_and_make(requests, on_step):
        while not go.wait(0.01):
            on_step(0, 2)
        return make(requests, on_step)

    monkeypatch.setattr(service.queue.engine, "make", wait_and_make)
    yield go
    go.set()
    finish_all(service.queue)


def finish_all(queue):
    for job in queue.list_jobs():
        while not job.is_done:
            time.sleep(0.01)


def error_of(response):
    return response.json()["error"]


def test_music_is_made_and_taken_away(service):
    response = service.post("/v1/generations", json=PIANO | {"output_format": "audio/flac"}, headers=WAIT)
    made = response.json()
    assert (response.status_code, made["status"], made["model"], made["seed"]) == (201, "complete", "tiny", 3)
    (audio,) = made["outputs"]["audio"]
    sound = service.get(audio["url"])
    samples, rate = soundfile.read(io.BytesIO(sound.content))
    assert (sound.headers["content-type"], rate, len(samples)) == ("audio/flac", 16_000, 3200)
    settings = service.get(audio["record_url"]).json()["settings"]
    assert (settings["prompt"], settings["seconds"], settings["seed"]) == ("calm piano", 0.2, 3)
    again = service.post("/v1/generations", json=PIANO | {"response_format": "b64_json"}, headers=WAIT).json()
    assert again["outputs"]["audio"][0]["base64"].startswith("UklGR")  # RIFF
    place = f"/v1/generations/{made['id']}"
    assert service.get(place).json() == made
    assert service.delete(place).status_code == 204
    assert service.get(place).status_code == service.get(audio["url"]).status_code == 404
    assert not list(service.queue.jobs.folder.glob(made["id"]))


def test_several_outputs_count_seeds_up_and_the_alias_answers_with_sound(service):
    body = PIANO | {"parameters": PIANO["parameters"] | {"num_outputs": 2}}
    audios = service.post("/v1/generations", json=body, headers=WAIT).json()["outputs"]["audio"]
    assert [audio["seed"] for audio in audios] == [3, 4]
    first, second = (decode(service.get(audio["url"]).content) for audio in audios)
    assert np.abs(first - second).max() > 0.01
    body = {"input": "calm piano", "audio_length": 0.2, "num_inference_steps": 2, "seed": 3}
    response = service.post("/v1/audio/generate", json=body)
    assert response.headers["content-type"] == "audio/wav"
    np.testing.assert_allclose(decode(response.content), first, atol=1e-3)


def test_a_client_can_follow_what_is_made(service):
    job = service.post("/v1/generations", json=PIANO).json()
    events = service.get(f"/v1/generations/{job['id']}/events").text.strip().split("\n\n")
    assert events[-1].startswith("event: complete\ndata: {")
    assert json.loads(events[-1].partition("data: ")[2])["status"] == "complete"


def test_the_queue_is_bounded_says_positions_and_can_be_left(service, held):
    running = service.post("/v1/generations", json=PIANO).json()
    while service.queue.get(running["id"]).status != "generating":
        time.sleep(0.01)
    waiting = [service.post("/v1/generations", json=PIANO).json() for _ in range(3)]
    assert [job["position"] for job in waiting] == [1, 2, 3]
    refused = service.post("/v1/generations", json=PIANO)
    assert (refused.status_code, error_of(refused)["waiting"]) == (429, 3)
    assert refused.headers["retry-after"]
    assert service.post(f"/v1/generations/{waiting[0]['id']}/cancel").json()["status"] == "canceled"
    assert service.get(f"/v1/generations/{waiting[1]['id']}").json()["position"] == 1
    service.post(f"/v1/generations/{running['id']}/cancel")
    held.set()
    finish_all(service.queue)
    assert service.get(f"/v1/generations/{running['id']}").json()["status"] == "canceled"
    assert service.get(f"/v1/generations/{waiting[2]['id']}").json()["status"] == "complete"
    assert 'qamdt_generations_total{status="canceled"}' in service.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "The body must be a JSON object"),
        (b"[" * 50_000, 400, "The body must be a JSON object"),
        (b"\xff\xfe", 400, "The body must be a JSON object"),
        (b"[]", 400, "The body must be a JSON object."),
        (b" " * 70_000, 413, "A body may have at most 65536 bytes here"),
        ({"inputs": {}}, 400, "The task 'text_to_audio' needs the input `prompt`, got none"),
        ({"inputs": {"prompt": "piano", "audio": 1}}, 400, "The task 'text_to_audio' has no input `audio`"),
        ({"inputs": {"prompt": "piano"}, "parameters": {"model": "/etc"}}, 400, "has no parameter `model`"),
        ({"inputs": {"prompt": "piano"}, "parameters": {"lora": [["/etc", 1]]}}, 400, "has no parameter `lora`"),
        ({"inputs": {"prompt": "p" * 3000}}, 400, "`prompt` may have at most 2000 characters here"),
        ({"inputs": {"prompt": "\ud800"}}, 400, "`prompt` must be text in UTF-8"),
        ({"inputs": {"prompt": "piano"}, "parameters": {"duration": 61}}, 400, "`duration` may be at most 60 seconds"),
        ({"inputs": {"prompt": "piano"}, "parameters": {"duration": 1e999}}, 400, "`seconds` must be a number"),
        ({"inputs": {"prompt": "piano"}, "parameters": {"steps": 10**6}}, 400, "`steps` may be at most 200 here"),
        ({"inputs": {"prompt": "piano"}, "parameters": {"num_outputs": 9}}, 400, "may be at most 8 here, got 9"),
        ({"inputs": {"prompt": "piano"}, "parameters": {"seed": 2**63 - 1}}, 400, "`seed` must leave room"),
        ({"inputs": {"prompt": "piano"}, "parameters": {"chords": "C" * 2000}}, 400, ""),
        ({"inputs": {"prompt": "piano"}, "model": "other"}, 404, "The model here is 'tiny', got 'other'"),
        ({"inputs": {"prompt": "piano"}, "adapters": []}, 501, "applies no adapters"),
        ({"inputs": {"prompt": "piano"}, "output_format": ["audio/wav"]}, 400, "`output_format` must be among"),
        ({"inputs": {"prompt": [[0, "piano"], [5, "drums"]]}}, 400, "`prompt` must be a text, got"),
        ({"inputs": "piano"}, 400, "`inputs` must be an object, got 'piano'"),
    ],
)
def test_bodies_that_make_no_sense_are_refused(service, body, status, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = service.post("/v1/generations", content=content)
    assert response.status_code == status
    assert message in error_of(response)["message"]


def test_what_only_the_model_can_refuse_fails_with_its_reason(service):
    body = {"inputs": {"prompt": "piano"}, "parameters": {"bpm": 90, "steps": 2, "duration": 0.2}}
    response = service.post("/v1/generations", json=body, headers=WAIT)
    assert response.status_code == 400
    assert "`bpm`" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/generations/gen_0/files/..%2f..%2fjob.json", {}, 404),
        ("GET", "/v1/generations/..%2f..%2flock", {}, 404),
        ("GET", "/v1/generations/gen_%00", {}, 404),
        ("GET", "/v1/models/nobody", {}, 404),
        ("POST", "/v1/generations", {"origin": "https://evil.example"}, 403),
        ("POST", "/v1/generations", {"origin": "null"}, 403),
        ("GET", "/health", {"host": "evil.example"}, 403),
        ("POST", "/v1/score", {"content-length": str(4 << 30)}, 413),
        ("POST", "/v1/score", {"content-length": "-1"}, 413),
        ("POST", "/v1/score", {"content-type": "multipart/form-data"}, 400),
        ("PATCH", "/v1/generations", {}, 405),
    ],
)
def test_hostile_requests_are_refused(service, method, path, headers, status):
    response = service.request(method, path, headers=headers)
    assert response.status_code == status
    assert error_of(response)["message"]


def test_the_document_says_what_an_id_is_good_for(service):
    paths = service.get("/openapi.json").json()["paths"]
    operations = {operation["operationId"] for path in paths.values() for operation in path.values()}
    links = paths["/v1/generations"]["post"]["responses"]["201"]["links"]
    assert {link["operationId"] for link in links.values()} <= operations
    assert "prompt" in json.dumps(paths["/v1/generations"]["post"]["requestBody"])


def test_a_job_of_another_client_is_found_by_its_id_alone(service):
    made = service.post("/v1/generations", json=PIANO, headers=WAIT).json()
    assert len(made["id"]) == len("gen_") + 32
    for name in ("job.json", "../job.json", "0.flac"):
        assert service.get(f"/v1/generations/{made['id']}/files/{name}").status_code == 404


def test_files_are_scored_or_refused_before_they_are_unpacked(service, scorer_dir, monkeypatch):
    from whisq.scorer import WhisQScorer

    load = WhisQScorer.from_pretrained
    monkeypatch.setattr(WhisQScorer, "from_pretrained", lambda **options: load(scorer_dir, **options))

    def score(content, **fields):
        return service.post("/v1/score", files={"file": ("../../x.wav", content)}, data=fields)

    times = np.arange(16_000) / 16_000
    scored = score(encode(0.3 * np.sin(440 * 2 * np.pi * times)), prompt="calm piano").json()
    assert 1 <= scored["overall_quality"] <= 5
    assert 1 <= scored["text_alignment"] <= 5
    assert score(encode(np.zeros(16_000))).json()["error"] == "the audio is silent"
    silence = encode(np.zeros(16_000 * 600), "FLAC")  # a bomb: ten minutes in a few kilobytes
    assert len(silence) < 1 << 17
    assert score(silence).status_code == 413
    for content in (b"", b"no audio", b"RIFF\xff\xff\xff\xffWAVEfmt ", encode(times)[:30]):
        assert score(content).status_code == 400
    many_channels = io.BytesIO()
    soundfile.write(many_channels, np.zeros((100, 16)), 16_000, format="WAV")
    assert score(many_channels.getvalue()).status_code == 400
    assert score(b"\0" * (2 << 20)).status_code == 413
    assert service.post("/v1/score", data={"file": "text"}).status_code == 400


def decode(content):
    return soundfile.read(io.BytesIO(content))[0]


def encode(samples, file_format="WAV"):
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=file_format)
    return file.getvalue()


def test_a_key_is_asked_for(model_dir, tmp_path):
    settings = ServiceSettings(folder=tmp_path, model=str(model_dir), api_key="secret")
    with TestClient(guarded(create_app(settings), settings)) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        for headers in (
            {"authorization": "Bearer secret"},
            {"authorization": "Basic bWU6c2VjcmV0"},
            {"x-api-key": "secret"},
        ):
            assert client.get("/v1/models", headers=headers).status_code == 200
        with pytest.raises(RuntimeError, match="another process is writing"):
            create_app(settings)


def test_only_a_loopback_address_narrows_the_names():
    assert "localhost" in allowed_hosts("127.0.0.1")
    assert "localhost" in allowed_hosts("::1")
    assert allowed_hosts("0.0.0.0") == allowed_hosts("10.0.0.1") == ()


# Restarts.


class StubbornEngine(Engine):
    """Makes nothing until it is told to."""

    def __init__(self):
        self.model, self.device = "none", "cpu"
        self.go, self.made = threading.Event(), []

    def load(self):
        pass

    def make(self, requests, on_step):
        while not self.go.wait(0.01):
            on_step(1, 2)
        self.made.append(requests[0].prompt)
        return []


def kill(queue):
    """What is left of a service after SIGKILL: its files, and no lock."""
    queue._claim.close()
    queue._is_closing = True


def test_a_killed_service_makes_again_what_it_had_accepted(tmp_path):
    first = GenerationQueue(StubbornEngine(), tmp_path)
    jobs = [Job(requests=[GenerationRequest(prompt=name)]) for name in ("done", "running", "waiting")]
    first.engine.go.set()
    first.submit(jobs[0])
    finish_all(first)
    first.engine.go.clear()
    for job in jobs[1:]:
        first.submit(job)
    while jobs[1].status != "generating" or JobFolder(tmp_path / "jobs").load()[0][1].status != "generating":
        time.sleep(0.01)
    (first.jobs.place(jobs[1]) / ".0.wav.1.tmp").touch()
    (first.jobs.folder / "gen_bad").mkdir()
    (first.jobs.folder / "gen_bad" / "job.json").write_text("{")
    kill(first)

    second = GenerationQueue(StubbornEngine(), tmp_path)
    assert second.get(jobs[0].id).status == "complete"
    assert not (first.jobs.place(jobs[1]) / ".0.wav.1.tmp").exists()
    second.engine.go.set()
    finish_all(second)
    assert second.engine.made == ["running", "waiting"]
    assert {job.status for job in second.list_jobs()} == {"complete"}
    second.close(5)
    first.engine.go.set()


def test_a_job_that_kills_the_service_twice_is_reported_as_lost(tmp_path):
    job = Job(requests=[GenerationRequest(prompt="piano")], status="generating", attempts=2)
    JobFolder(tmp_path / "jobs").save(job)
    queue = GenerationQueue(StubbornEngine(), tmp_path)
    found = queue.get(job.id)
    assert (found.status, found.error["message"][:5]) == ("failed", "Lost:")
    queue.close(5)


def test_a_service_that_stops_finishes_what_runs_and_keeps_what_waits(tmp_path):
    queue = GenerationQueue(StubbornEngine(), tmp_path)
    jobs = [Job(requests=[GenerationRequest(prompt=name)]) for name in ("running", "waiting")]
    for job in jobs:
        queue.submit(job)
    while jobs[0].status != "generating":
        time.sleep(0.01)
    threading.Timer(0.1, queue.engine.go.set).start()
    queue.close(30)
    assert (queue.engine.made, jobs[0].status, jobs[1].status) == (["running"], "complete", "queued")
    with pytest.raises(ServiceError, match="The service is stopping"):
        queue.submit(jobs[1])


def test_finished_jobs_go_when_their_time_is_over(tmp_path):
    jobs = JobFolder(tmp_path / "jobs")
    old = Job(requests=[GenerationRequest(prompt="old")], status="complete", finished_at=time.time() - 3700)
    jobs.save(old)
    queue = GenerationQueue(StubbornEngine(), tmp_path, keep_hours=1)
    with pytest.raises(ServiceError, match="it may have expired"):
        queue.get(old.id)
    assert not list(jobs.folder.iterdir())
    queue.close(5)


def test_a_cancelled_generation_ends_after_its_step(model_dir):
    engine = Engine(str(model_dir), "cpu")
    request = engine.decide(GenerationRequest(prompt="piano", steps=5, seconds=0.2))
    steps = []

    def stop(done, total):
        steps.append((done, total))
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.make([request], stop)
    assert steps == [(1, 5), (2, 5)]
    assert len(engine.make([request], lambda done, total: None)) == 1


def test_what_is_missing_is_named(monkeypatch, tmp_path, capsys):
    from pipelines.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve"]) == 1
    assert "install it with `pip install 'qamdt[serve]'`" in capsys.readouterr().err
    assert main(["serve", "--max-waiting", "0"]) == 2
    assert "`max_waiting` must be an integer of at least 1" in capsys.readouterr().err
