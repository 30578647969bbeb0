"""What the page does when music is asked for: a request becomes a job of the queue, which is followed to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from pipelines.request import GenerationRequest
from pipelines.restoration import summarize_restoration
from pipelines.service.acceptance import Order, accept
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
    loop: bool
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
            loop=self.loop,
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


def submit(orders: list[Order], queue: GenerationQueue, settings: ServiceSettings) -> list[Job]:
    """Puts orders into the queue; none of them if one is refused.

    Raises:
        ValueError: One is beyond the limits or begins with what is no sound, or the queue is full.
    """
    jobs: list[Job] = []
    try:
        for order in orders:
            jobs.append(accept(order, queue, settings))
    except (ServiceError, ValueError) as error:
        for job in jobs:
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
    settings, music, restoration = record["settings"], record.get("music"), record.get("restoration")
    request = GenerationRequest.from_dict(settings)
    how = f"seed {settings['seed']}, {settings['steps']} steps, guidance {settings['guidance']:g}"
    if restoration:
        lines = [f"**Restored.** {summarize_restoration(restoration)} {how[0].upper()}{how[1:]}."]
    else:
        lines = [f"**Quality asked for** {describe_quality(request.quality)}; {how}."]
    if beginning := describe_beginning(request):
        lines.append(f"**From** {beginning}.")
    if music:
        tempo = f"{round(music['tempo_bpm'], 1):g} bpm" if music.get("tempo_bpm") else "no set tempo"
        chords = " ".join(symbol for _, symbol in music.get("chords") or [])
        lines.append(f"**Played** {tempo}, {music.get('key') or 'no set key'}{', ' + chords if chords else ''}.")
    if score is not None:
        lines.append(describe_score(score))
    return "\n\n".join(lines + [f"⚠ {warning}" for warning in record.get("warnings", [])])


def describe_beginning(request: GenerationRequest) -> str:
    """What was done with the recording of a request; nothing if it has none."""
    if request.init_audio is not None:
        return f"a recording, changed at strength {request.strength:g}"
    if request.inpaint_audio is None:
        return ""
    spans = ", ".join(f"{start:g} to {end:g} s" for start, end in request.spans)
    done = f"{spans} played anew" if spans else "made a loop" if request.loop else "continued"
    return f"a recording, {done}"


def describe_score(score: dict[str, Any]) -> str:
    """What the scorer says, as Markdown."""
    if score["error"]:
        return f"**No score**: {score['error']}."
    parts = [f"**Quality heard** {score['overall_quality']:.2f} of 5"]
    if score["text_alignment"] is not None:
        parts.append(f"**follows the prompt** {score['text_alignment']:.2f} of 5")
    flags = f" ({', '.join(score['flags'])})" if score["flags"] else ""
    return f"{', '.join(parts)}{flags}, says `{score['scorer']}`: audible damage, not taste."
