"""Runs the steps on a Ray cluster, or on this machine's cores, by Ray Data.

The machine that starts the run keeps the books: it hands out jobs and stores the rows that come back, so a run can be
killed and taken up again like any other, also by another engine. Every machine must see the audio under the same path.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.refine.async_engine import answer_concurrently
from data_prep.refine.jobs import Job, RefineSettings
from data_prep.refine.llm_client import LlmClient, RunStopped, Server
from data_prep.refine.questions import iterate_fusion_questions
from data_prep.refine.spending import CostLimitReached, Spending, Usage


JOBS_PER_DATASET = 20_000  # handed to the cluster at a time, which bounds the memory of this machine


def run_jobs_on_ray(
    step: str,
    jobs: Iterable[Job],
    manifest: Path,
    settings: RefineSettings,
    *,
    num_actors: int,
    batch_size: int = 16,
    device: str = "cpu",
) -> Iterator[list[dict[str, Any]]]:
    """Runs jobs that need no network on a cluster and yields their rows, in any order.

    Args:
        step: Name of the step.
        jobs: What to do; read lazily.
        manifest: The manifest, at a path that every machine sees.
        settings: Settings of the run.
        num_actors: How many processes of the cluster hold the models.
        batch_size: Clips at a time.
        device: Where the models compute; an actor takes a GPU when this is not the CPU.
    """
    arguments = (step, manifest, settings, device)
    yield from _map_jobs(jobs, _StepActor, arguments, num_actors, batch_size, num_gpus=int(device != "cpu"))


def ask_on_ray(
    jobs: Iterable[Job],
    settings: RefineSettings,
    server: Server,
    spending: Spending,
    write: Callable[[dict[str, Any]], None],
    *,
    num_actors: int,
) -> None:
    """Asks the language model about clips from many machines, which share the server's limits.

    Args:
        jobs: Jobs of step `fuse`; read lazily.
        settings: Settings of the run.
        server: Where the model runs; each actor takes its share of the limits.
        spending: Running totals; each actor may spend its share of what is left.
        write: Takes the rows of step `fuse`.
        num_actors: How many processes of the cluster ask.

    Raises:
        RunStopped: Going on makes no sense; rows without answer stay to be done.
    """
    left = None if spending.max_cost is None else (spending.max_cost - spending.cost) / num_actors
    arguments = (
        settings,
        server.share(num_actors),
        replace(spending, max_cost=left, usage=Usage()),
        server.read_key(),
    )
    batch_size = 8 * server.concurrency
    for rows in _map_jobs(jobs, _AskActor, arguments, num_actors, batch_size, num_gpus=0):
        for row in rows:
            if "stopped" in row:
                raise RunStopped(row["stopped"])
            spending.usage += Usage(**row.get("usage", {}))
            write(row)


def _map_jobs(
    jobs: Iterable[Job], actor: type, arguments: tuple, num_actors: int, batch_size: int, num_gpus: int
) -> Iterator[list[dict[str, Any]]]:
    """Sends jobs through actors and yields the rows of one batch at a time."""
    ray = _import_ray()
    jobs = iter(jobs)
    while chunk := [{"job": job.to_json()} for job in islice(jobs, JOBS_PER_DATASET)]:
        dataset = ray.data.from_items(chunk, override_num_blocks=max(1, len(chunk) // batch_size)).map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=num_actors),
            num_gpus=num_gpus,
        )
        for batch in dataset.iter_batches(batch_size=None):
            yield [json.loads(row) for row in batch["row"]]


class _StepActor:
    """A process of the cluster with the models."""

    def __init__(self, step: str, manifest: Path, settings: RefineSettings, device: str):
        from data_prep.refine.step_runner import StepRunner  # here, so that actors that only ask load no models

        self.step = step
        self.runner = StepRunner(manifest, settings, device=device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        rows = self.runner.run(self.step, [Job.from_json(job) for job in batch["job"]])
        return {"row": [json.dumps(row) for row in rows]}


class _AskActor:
    """A process of the cluster that asks the language model."""

    def __init__(self, settings: RefineSettings, server: Server, spending: Spending, key: str):
        self.settings = settings
        self.server = server
        self.spending = spending
        self.key = key

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        rows: list[dict[str, Any]] = []
        client = LlmClient(self.settings.model, self.server, self.spending, key=self.key)
        questions = iterate_fusion_questions(map(Job.from_json, batch["job"]), self.settings, rows.append)
        try:
            asyncio.run(answer_concurrently(questions, client, rows.append))
        except (RunStopped, CostLimitReached) as error:
            rows.append({"stopped": str(error)})
        return {"row": [json.dumps(row) for row in rows]}


def _import_ray():
    """Imports the package of extra `ray`."""
    try:
        import ray
        import ray.data  # noqa: F401  which `import ray` does not bring
    except ImportError as error:
        raise RuntimeError("`engine` 'ray' needs Ray: pip install 'qamdt[ray]'.") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    return ray
