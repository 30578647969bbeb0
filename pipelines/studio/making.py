"""What the page does when music is asked for: a request becomes a job of the queue, which is followed to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from pipelines.request import GenerationRequest
from pipelines.service.bodies import check_limits, make_job
from pipelines.service.errors import ServiceError
from pipelines.service.generation_queue import GenerationQueue
from pipelines.service.jobs import Job
from pipelines.service.settings import ServiceSettings
from pipelines.studio.history import describe_quality
from pipelines.studio.quality_curve import to_quality


POLL_IN_S = 0.2
COMPARISONS = ("one take", "two seeds", "low and high quality")


@dataclass(frozen=True, kw_only=True)
class Form:
    """What stands in the fields of the page, in their order there."""

    prompt: str
    seconds: float
    is_curve: bool
    score: float
    curve: str
    bpm: str
    key: str
    chords: str
    compare: str
    steps: int
    guidance: float
    seed: int
    negative_prompt: str

    def requests(self) -> list[GenerationRequest]:
        """The requests that they make: one, or two to compare.

        Raises:
            ValueError: A field makes no sense.
        """
        if not self.prompt.strip():
            raise ValueError("Describe the music first.")
        request = GenerationRequest(
            prompt=self.prompt,
            seconds=self.seconds,
            quality=to_quality(self.curve, self.seconds) if self.is_curve else self.score,
            bpm=_read_tempo(self.bpm),
            key=self.key or None,
            chords=self.chords or None,
            steps=int(self.steps),
            guidance=self.guidance,
            seed=int(self.seed),
            negative_prompt=self.negative_prompt,
        )
        if self.compare == "two seeds":
            return request.takes(2)
        if self.compare == "low and high quality":
            return [replace(request, quality="low"), replace(request, quality="high")]
        return [request]


def _read_tempo(text: str) -> float | None:
    try:
        return float(text) if text.strip() else None
    except ValueError as error:
        raise ValueError(f"The tempo must be a number of beats a minute, got {text!r}.") from error


def submit(requests: list[GenerationRequest], queue: GenerationQueue, settings: ServiceSettings) -> list[Job]:
    """Puts requests into the queue; none of them if one is refused.

    Raises:
        ValueError: A request is beyond the limits, or the queue is full.
    """
    jobs: list[Job] = []
    try:
        for request in requests:
            check_limits(request, 1, settings)
            jobs.append(make_job(request, 1, queue.engine))
            queue.submit(jobs[-1])
    except (ServiceError, ValueError) as error:
        for job in jobs:
            if not (isinstance(error, ServiceError) and job is jobs[-1]):
                queue.delete(job.id)
        raise ValueError(str(error)) from error
    return jobs


def follow(jobs: list[Job], queue: GenerationQueue) -> Iterator[str]:
    """Yields how far jobs are, whenever that changes, until all are done."""
    last = None
    while not all(job.is_done for job in jobs):
        now = describe_progress(jobs, queue)
        if now != last:
            yield now
            last = now
        time.sleep(POLL_IN_S)


def describe_progress(jobs: list[Job], queue: GenerationQueue) -> str:
    """How far jobs are, as HTML that screen readers read out."""
    job = next(job for job in [*jobs, jobs[-1]] if not job.is_done or job is jobs[-1])
    name = f"Take {'AB'[jobs.index(job)]}: " if len(jobs) > 1 else ""
    position = queue.position(job)
    if position is not None:
        return status(f"{name}number {position + 1} in the queue")
    if job.progress is None:
        return status(f"{name}beginning")
    done, total = job.progress
    return status(f"{name}step {done} of {total}", done / total)


def status(text: str, fraction: float | None = None) -> str:
    """A line of status, with a bar if a fraction is given."""
    bar = "" if fraction is None else f'<progress value="{fraction:.3f}" aria-label="Progress"></progress>'
    return f'<div role="status" class="qamdt-status">{escape(text)}{bar}</div>'


def sound_of(job: Job, queue: GenerationQueue) -> Path:
    """The sound file of a job that is done.

    Raises:
        ValueError: It failed or was cancelled.
    """
    if job.error is not None:
        raise ValueError(job.error["message"])
    if not job.files:
        raise ValueError("Cancelled.")
    return queue.jobs.place(job) / job.files[0]


def describe_take(record: dict[str, Any], score: dict[str, Any] | None = None) -> str:
    """What is worth knowing about a clip, as Markdown."""
    settings, music = record["settings"], record.get("music")
    asked = describe_quality(GenerationRequest.from_dict(settings).quality)
    how = f"seed {settings['seed']}, {settings['steps']} steps, guidance {settings['guidance']:g}"
    lines = [f"**Quality asked for** {asked}; {how}."]
    if music:
        tempo = f"{music['tempo_bpm']:g} bpm" if music.get("tempo_bpm") else "no set tempo"
        chords = " ".join(symbol for _, symbol in music.get("chords") or [])
        lines.append(f"**Played** {tempo}, {music.get('key') or 'no set key'}{', ' + chords if chords else ''}.")
    if score is not None:
        lines.append(describe_score(score))
    return "\n\n".join(lines + [f"⚠ {warning}" for warning in record.get("warnings", [])])


def describe_score(score: dict[str, Any]) -> str:
    """What the scorer says, as Markdown."""
    if score["error"]:
        return f"**No score**: {score['error']}."
    parts = [f"**Quality heard** {score['overall_quality']:.2f} of 5"]
    if score["text_alignment"] is not None:
        parts.append(f"**follows the prompt** {score['text_alignment']:.2f} of 5")
    flags = f" ({', '.join(score['flags'])})" if score["flags"] else ""
    return f"{', '.join(parts)}{flags}, says `{score['scorer']}`: audible damage, not taste."
