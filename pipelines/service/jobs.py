"""A job: requests that one client made at once, what became of them, and the folder that says so after a restart."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.request import GenerationRequest
from qamdt.files import read_json, write_json


JOB_NAME = "job.json"
FINAL = ("complete", "failed", "canceled")
_ID = re.compile("gen_[0-9a-f]{32}")


@dataclass(kw_only=True)
class Job:
    """Clips to make in one go.

    Args:
        requests: What to make: decided, and alike but for their seeds.
        suffix: Of the sound files, such as ".wav".
        response_format: How clients want them, "url" or "b64_json".
        id: What clients call it; nobody can guess it.
        status: "queued", "generating", or one of `FINAL`.
        created_at: When it was accepted, in seconds since 1970.
        started_at: When it was begun last.
        finished_at: When it ended.
        attempts: How often it was begun.
        files: The sound files that were made, in the folder of the job.
        error: Code and message of what went wrong.
        progress: Steps done and all steps, while it is generated; not kept.
        is_unwanted: Whether it was cancelled while it was generated; not kept.
    """

    requests: Sequence[GenerationRequest]
    suffix: str = ".wav"
    response_format: str = "url"
    id: str = field(default_factory=lambda: f"gen_{secrets.token_hex(16)}")
    status: str = "queued"
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None
    attempts: int = 0
    files: tuple[str, ...] = ()
    error: dict[str, str] | None = None
    progress: tuple[int, int] | None = None
    is_unwanted: bool = False

    @property
    def recording(self) -> str | None:
        """The file that it begins with, in its folder, if it does."""
        return self.requests[0].recording

    @property
    def is_done(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in FINAL

    def to_dict(self) -> dict[str, Any]:
        """The job as it is kept."""
        kept = ("suffix", "response_format", "id", "status", "created_at", "started_at", "finished_at", "attempts")
        values = {name: getattr(self, name) for name in kept}
        requests = [request.to_dict() for request in self.requests]
        return {**values, "files": list(self.files), "error": self.error, "requests": requests}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        """Reads `to_dict()`'s result."""
        requests = [GenerationRequest.from_dict(request) for request in values["requests"]]
        return cls(**values | {"requests": requests, "files": tuple(values["files"])})


class JobFolder:
    """Where jobs are kept, a folder each.

    Args:
        folder: Made if there is none.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def place(self, job: Job) -> Path:
        """The folder of a job."""
        return self.folder / job.id

    def make_place(self, job: Job) -> Path:
        """Makes the folder of a job, which is none until it is saved."""
        self.place(job).mkdir(exist_ok=True)
        return self.place(job)

    def save(self, job: Job) -> None:
        """Writes down what is known of a job, before anyone is told of it."""
        write_json(self.make_place(job) / JOB_NAME, job.to_dict())

    def remove(self, job: Job) -> None:
        """Removes a job and what it made."""
        shutil.rmtree(self.place(job), ignore_errors=True)

    def remove_results(self, job: Job) -> None:
        """Removes what a job made or left half made, and nothing else."""
        for path in self.place(job).iterdir():
            if path.name not in (JOB_NAME, job.recording):
                path.unlink()

    def load(self) -> tuple[list[Job], list[Path]]:
        """Returns the jobs that are kept, oldest first, and the files that hold none.

        What was received for a job that nobody was told of is removed.
        """
        jobs, bad = [], []
        for place in self.folder.iterdir():
            if _ID.fullmatch(place.name) and not (place / JOB_NAME).exists():
                shutil.rmtree(place, ignore_errors=True)
        for path in self.folder.glob(f"gen_*/{JOB_NAME}"):
            try:
                jobs.append(Job.from_dict(read_json(path)))
            except (ValueError, KeyError, TypeError):
                bad.append(path)
        return sorted(jobs, key=lambda job: job.created_at), bad
