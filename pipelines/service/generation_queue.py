"""The queue: bounded, with its state on disk, and one thread that works it off.

A job is on the disk before its client hears of it. What a killed service had accepted is there at the next start:
finished jobs answer as before, waiting ones wait again, and the one that was being made is made again, from the same
seed. A job that was being made at two kills in a row is not tried a third time, and says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.request import GenerationRequest
from pipelines.service.engine import Cancelled, Engine
from pipelines.service.errors import ServiceError
from pipelines.service.jobs import Job, JobFolder
from qamdt.files import claim


logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 2


class GenerationQueue:
    """Jobs of a service.

    Args:
        engine: Makes clips.
        folder: Where jobs are kept; another service that has it is refused.
        max_waiting: Jobs that may wait.
        keep_hours: How long finished jobs stay.
        on_finish: Told of each job that ends.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        *,
        max_waiting: int = 16,
        keep_hours: float = 24.0,
        on_finish: Callable[[Job], None] = lambda job: None,
    ):
        self.engine = engine
        self.jobs = JobFolder(folder / "jobs")
        self.failure: str | None = None
        self._claim = claim(folder / "lock")
        self._max_waiting = max_waiting
        self._keep_seconds = keep_hours * 3600
        self._on_finish = on_finish
        self._changed = threading.Condition()
        self._known: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._is_closing = False
        self._recover()
        self._worker = threading.Thread(target=self._work, name="generations", daemon=True)
        self._worker.start()

    def submit(self, job: Job) -> None:
        """Accepts a job.

        Raises:
            ServiceError: Too many wait, or the service is about to stop.
        """
        self._prune()
        with self._changed:
            if self._is_closing:
                raise ServiceError("unavailable", "The service is stopping; try again in a minute.")
            if len(self._waiting) >= self._max_waiting:
                raise ServiceError(
                    "rate_limited",
                    f"{len(self._waiting)} generations wait, and no more may. Try again later.",
                    waiting=len(self._waiting),
                )
            self.jobs.save(job)
            self._known[job.id] = job
            self._waiting.append(job)
            self._changed.notify_all()

    def get(self, job_id: str) -> Job:
        """Returns a job.

        Raises:
            ServiceError: There is none of this id, or its time is over.
        """
        self._prune()
        with self._changed:
            job = self._known.get(job_id)
        if job is None:
            raise ServiceError("not_found", f"There is no generation {job_id!r}; it may have expired.")
        return job

    def find_file(self, job_id: str, name: str) -> Path:
        """Returns a sound file that a job made or began with.

        Raises:
            ServiceError: There is none.
        """
        job = self.get(job_id)
        if name not in (*job.files, job.recording):
            raise ServiceError("not_found", f"The generation has no sound file {name!r}.")
        return self.jobs.place(job) / name

    def list_jobs(self) -> list[Job]:
        """Returns all jobs, newest first."""
        with self._changed:
            return sorted(self._known.values(), key=lambda job: -job.created_at)

    def position(self, job: Job) -> int | None:
        """How many jobs come before it; `None` for one that does not wait."""
        with self._changed:
            if job.status != "queued" or job not in self._waiting:
                return None
            return self._waiting.index(job) + (self._running is not None)

    @property
    def num_waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def expires_at(self, job: Job) -> float | None:
        """When a finished job goes, in seconds since 1970."""
        return None if job.finished_at is None else job.finished_at + self._keep_seconds

    def cancel(self, job_id: str) -> Job:
        """Ends a job that waits at once, and one that is being made after its step; a finished one stays."""
        job = self.get(job_id)
        with self._changed:
            if job.status == "queued" and job in self._waiting:
                self._waiting.remove(job)
                self._finish(job, "canceled")
            elif job.status == "generating":
                job.is_unwanted = True
        return job

    def delete(self, job_id: str) -> None:
        """Forgets a job and removes what it made."""
        job = self.cancel(job_id)
        with self._changed:
            self._known.pop(job.id, None)
            if job is not self._running:
                self.jobs.remove(job)

    def close(self, timeout_s: float) -> None:
        """Accepts nothing more and lets the running job end; those that wait stay on the disk for the next start.

        A job that is not done after `timeout_s` is left as it is, and made again at the next start.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._worker.join(timeout_s)
        self._claim.close()

    def _recover(self) -> None:
        jobs, bad = self.jobs.load()
        for path in bad:
            logger.warning(f"{str(path)!r} describes no generation and is passed over.")
        for job in jobs:
            self._known[job.id] = job
            if job.is_done:
                continue
            self.jobs.remove_results(job)
            if job.attempts >= MAX_ATTEMPTS:
                job.error = {
                    "code": "internal",
                    "message": f"Lost: the service was killed {job.attempts} times while it was made. Ask again.",
                }
                self._finish(job, "failed")
                logger.warning(f"{job.id} is lost: the service was killed {job.attempts} times while it was made.")
            else:
                again = "is made again, the service ended while it was made" if job.attempts else "waits again"
                logger.warning(f"{job.id} {again}.")
                job.status = "queued"
                self._waiting.append(job)

    def _prune(self) -> None:
        now = time.time()
        with self._changed:
            old = [job for job in self._known.values() if (self.expires_at(job) or now) < now]
            for job in old:
                del self._known[job.id]
                self.jobs.remove(job)

    def _work(self) -> None:
        try:
            self.engine.load()
        except Exception as error:  # noqa: BLE001 - whatever it is, `/health` says so and each job fails with its reason
            self.failure = f"{type(error).__name__}: {error}"
            logger.exception("The model cannot be loaded.")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or self._waiting)
                if self._is_closing:
                    return
                job = self._running = self._waiting.popleft()
                job.status, job.started_at, job.attempts = "generating", time.time(), job.attempts + 1
            self._make(job)

    def _make(self, job: Job) -> None:
        def on_step(done: int, total: int) -> None:
            job.progress = (done, total)
            if job.is_unwanted:
                raise Cancelled

        status, place = "complete", self.jobs.place(job)
        try:
            self.jobs.save(job)
            for number, clip in enumerate(self.engine.make(self._with_places(job), on_step)):
                clip = replace(clip, request=job.requests[number])  # records name no folders of this machine
                clip.save(place / f"{number}{job.suffix}")
                job.files = (*job.files, f"{number}{job.suffix}")
        except Cancelled:
            status = "canceled"
        except ValueError as error:
            message = str(error).replace(f"{place}/", "")
            status, job.error = "failed", {"code": "invalid_request", "message": message}
        except Exception as error:  # noqa: BLE001 - the worker outlives whatever a model raises
            logger.exception(f"{job.id} failed.")
            status, job.error = "failed", {"code": "internal", "message": f"{type(error).__name__}: {error}"}
        with self._changed:
            self._running = None
            if job.id not in self._known:  # deleted meanwhile
                self.jobs.remove(job)
                return
            if status != "complete":
                job.files = ()
            try:
                self._finish(job, status)
                if status != "complete":
                    self.jobs.remove_results(job)
            except OSError:  # a full disk must not end the worker
                logger.exception(f"What became of {job.id} could not be written down.")

    def _with_places(self, job: Job) -> Sequence[GenerationRequest]:
        """The requests of a job, with its recording where it is."""
        if job.recording is None:
            return job.requests
        path = str(self.jobs.place(job) / job.recording)
        return [request.with_recording(path) for request in job.requests]

    def _finish(self, job: Job, status: str) -> None:
        job.status, job.progress, job.finished_at = status, None, time.time()
        self._on_finish(job)
        self.jobs.save(job)
