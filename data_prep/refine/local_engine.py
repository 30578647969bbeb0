"""Runs the steps that need no network, in this process or in several."""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.refine.jobs import Job, RefineSettings
from data_prep.refine.step_runner import StepRunner


def run_jobs(
    step: str,
    jobs: Iterable[Job],
    runner: StepRunner,
    *,
    batch_size: int = 16,
    num_workers: int = 1,
    device: str = "cpu",
) -> Iterator[list[dict[str, Any]]]:
    """Runs jobs and yields their rows, some at a time and in order.

    Args:
        step: Name of the step.
        jobs: What to do; read lazily.
        runner: Runs the jobs if there is one process.
        batch_size: Clips at a time.
        num_workers: Number of processes, each with models of its own.
        device: Where their models compute.
    """
    jobs = iter(jobs)
    batches = iter(lambda: list(islice(jobs, batch_size)), [])
    if num_workers == 1:
        for batch in batches:
            yield runner.run(step, batch)
        return
    # A fresh interpreter for each worker: forking a process that has used threads (torch) can hang.
    context = multiprocessing.get_context("spawn")
    arguments = (runner.manifest, runner.settings, device)
    executor = ProcessPoolExecutor(num_workers, context, _start_worker, arguments)
    try:
        waiting = deque(executor.submit(_run_in_worker, step, batch) for batch in islice(batches, 2 * num_workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(executor.submit(_run_in_worker, step, batch) for batch in islice(batches, 1))
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died (its error is above; without one, memory may have run out). "
            "Run the same command again to continue, with fewer `num_workers` if need be."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


_runner: StepRunner | None = None


def _start_worker(manifest: Path, settings: RefineSettings, device: str) -> None:
    """Loads the models once in a worker process."""
    global _runner
    _runner = StepRunner(manifest, settings, device=device)


def _run_in_worker(step: str, jobs: list[Job]) -> list[dict[str, Any]]:
    return _runner.run(step, jobs)
