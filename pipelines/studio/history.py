"""What was made before, read from the records beside the sound files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.clips import record_path
from pipelines.request import GenerationRequest
from pipelines.service.generation_queue import GenerationQueue
from qamdt.files import read_json


@dataclass(frozen=True, kw_only=True)
class Take:
    """A clip that was made.

    Args:
        path: Its sound file.
        made_at: When, in seconds since 1970.
        record: How.
    """

    path: Path
    made_at: float
    record: dict[str, Any]

    @property
    def key(self) -> str:
        """What the page calls it: its job and its file."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def request(self) -> GenerationRequest:
        """The request that gives it again."""
        return GenerationRequest.from_dict(self.record["settings"])

    @property
    def title(self) -> str:
        """A line about it."""
        request = self.request
        moment = datetime.fromtimestamp(self.made_at).strftime("%d %b %H:%M:%S")
        quality = "restored" if request.restore_audio else f"quality {describe_quality(request.quality)}"
        text = request.text[:50] or "a recording"
        return f"{moment} · {text} · {quality} · seed {request.seed}"

    @property
    def recording(self) -> Path | None:
        """The sound file that it begins with, if it does."""
        return None if self.request.recording is None else self.path.parent / self.request.recording


def list_takes(queue: GenerationQueue) -> list[Take]:
    """Returns what was made and is still there, newest first."""
    takes = []
    for job in queue.list_jobs():
        for name in job.files if job.status == "complete" else ():
            path = queue.jobs.place(job) / name
            try:
                record = read_json(record_path(path))
            except (OSError, ValueError):  # removed by hand
                continue
            takes.append(Take(path=path, made_at=job.finished_at, record=record))
    return takes


def find_take(queue: GenerationQueue, key: str | None) -> Take | None:
    """Returns what the page calls `key`, if it is there."""
    return next((take for take in list_takes(queue) if take.key == key), None)


def describe_quality(quality: Any) -> str:
    """A quality in a word or two."""
    if isinstance(quality, tuple):
        scores = [point[1] if isinstance(point, tuple) else point for point in quality]
        return " → ".join(f"{score:g}" for score in (scores[0], scores[-1]))
    return "unknown" if quality is None else f"{quality}"
