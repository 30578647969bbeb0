"""Captions are refined by several processes: on Ray, in workers of this machine, and by ones that are killed."""

import json
from dataclasses import replace
from operator import itemgetter

import pytest

from benchmarks import refiner_throughput as prepared
from benchmarks.refiner_robustness import refine_and_kill
from data_prep.refine import ray_engine
from data_prep.refine.llm_client import ModelConfig, RunStopped, Server
from data_prep.refine.local_engine import run_jobs
from data_prep.refine.spending import Spending
from data_prep.refine.step_runner import StepRunner


BUSY = 120.0  # seconds that a busy machine may take over anything


@pytest.fixture(scope="module")
def base_url():
    with prepared.running_server() as url:
        yield url


@pytest.fixture
def run(tmp_path):
    """The books of seven clips that are through stage 2."""
    run = prepared.open_run(prepared.write_prepared_corpus(tmp_path, 7))
    run.settings = replace(run.settings, model=ModelConfig(model="script:ok"))
    return run


def test_kills_lose_nothing_and_ask_for_little_again(tmp_path):
    """Three processes are started, which is what it takes; `benchmarks.refiner_robustness` does it on a larger scale."""
    outcome = refine_and_kill(
        tmp_path, num_clips=24, num_kills=2, concurrency=3, script=["ok"], latency_in_s=0.1, seed=3
    )
    assert (outcome.num_done, outcome.num_rows) == (24, 24)
    assert all(count <= 3 for count in outcome.asked_again)
    assert outcome.num_requests <= 24 + 2 * 3


def test_ray_asks_as_one_process_does(run, base_url, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else other work on the machine may starve them
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")

    rows = []
    spending = Spending()
    server = Server(base_url=base_url, timeout_in_s=BUSY, concurrency=2)
    try:
        jobs = run.iterate_jobs("fuse")
        ray_engine.ask_on_ray(jobs, run.settings, server, spending, rows.append, num_actors=1)
        assert {row["id"]: row["status"] for row in rows} == {f"clip-{number:07d}": "done" for number in range(7)}
        assert spending.usage.requests == 7
        by_rules = ray_engine.run_jobs_on_ray(
            "fuse", run.iterate_jobs("fuse"), run.manifest.path, run.settings, num_actors=1
        )
        expected = StepRunner(run.manifest.path, run.settings).run("fuse", list(run.iterate_jobs("fuse")))
        assert sorted((row for rows in by_rules for row in rows), key=itemgetter("id")) == expected
    finally:
        ray.shutdown()


def test_what_stops_one_actor_stops_the_run(run, base_url, monkeypatch):
    refused = replace(run.settings, model=ModelConfig(model="script:401"))
    actor = ray_engine._AskActor(refused, Server(base_url=base_url, timeout_in_s=BUSY), Spending(), "key")

    def map_in_this_process(jobs, *_, **__):
        yield [json.loads(row) for row in actor({"job": [job.to_json() for job in jobs]})["row"]]

    monkeypatch.setattr(ray_engine, "_map_jobs", map_in_this_process)
    with pytest.raises(RunStopped, match="refused the key"):
        ray_engine.ask_on_ray(run.iterate_jobs("fuse"), refused, actor.server, Spending(), print, num_actors=1)


def test_two_processes_make_the_rows_of_one(run):
    runner = StepRunner(run.manifest.path, run.settings)
    expected = runner.run("fuse", list(run.iterate_jobs("fuse")))
    batches = run_jobs("fuse", run.iterate_jobs("fuse"), runner, batch_size=4, num_workers=2)
    assert [row for rows in batches for row in rows] == expected
