"""How an order becomes a job: within the limits, decided, with its recording in its folder, and in the queue."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.request import GenerationRequest
from pipelines.service.errors import ServiceError
from pipelines.service.generation_queue import GenerationQueue
from pipelines.service.jobs import Job
from pipelines.service.recordings import Sound, keep_recording
from pipelines.service.settings import ServiceSettings


MAX_CHORDS = 1000


@dataclass(frozen=True, kw_only=True)
class Order:
    """What somebody asks for.

    Args:
        request: What to make. If it begins with a recording, whatever stands for it is replaced by the name of `sound`.
        num_clips: How many takes, with seeds that count up.
        suffix: Of the sound files, such as ".wav".
        response_format: How the client wants them, "url" or "b64_json".
        sound: The recording.
    """

    request: GenerationRequest
    num_clips: int = 1
    suffix: str = ".wav"
    response_format: str = "url"
    sound: Sound | None = None


def accept(order: Order, queue: GenerationQueue, settings: ServiceSettings) -> Job:
    """Puts an order into the queue.

    Raises:
        ServiceError: Its recording is refused, or the queue is full; nothing of it is kept.
        ValueError: It is beyond a limit.
    """
    check_limits(order.request, order.num_clips, settings)
    requests = [queue.engine.decide(take) for take in order.request.takes(order.num_clips)]
    job = Job(requests=requests, suffix=order.suffix, response_format=order.response_format)
    try:
        if order.sound is not None:
            recording = keep_recording(order.sound, queue.jobs.make_place(job), settings)
            _check_length(order.request, recording.seconds, settings)
            job.requests = [request.with_recording(recording.name) for request in requests]
        queue.submit(job)
    except (ServiceError, ValueError, OSError):
        queue.jobs.remove(job)
        raise
    return job


def _check_length(request: GenerationRequest, seconds: float, settings: ServiceSettings) -> None:
    """Refuses a clip that is too long because of the recording in it."""
    end = (request.audio_start or 0.0) + seconds
    if request.seconds is None and end > settings.max_seconds:
        raise ValueError(f"The clip may last at most {settings.max_seconds:g} seconds here, got {end:g}.")


def check_limits(request: GenerationRequest, num_clips: int, settings: ServiceSettings) -> None:
    """Refuses what would take the service too long.

    Raises:
        ValueError: A field is beyond its limit.
    """
    for name, text in (("prompt", request.text), ("negative_prompt", request.negative_prompt)):
        if len(text) > settings.max_prompt:
            raise ValueError(f"`{name}` may have at most {settings.max_prompt} characters here.")
    if len(request.chords or ()) > MAX_CHORDS:
        raise ValueError(f"`chords` may have at most {MAX_CHORDS} characters or pairs here.")
    if request.seconds is not None and request.seconds > settings.max_seconds:
        raise ValueError(f"`duration` may be at most {settings.max_seconds:g} seconds here, got {request.seconds:g}.")
    if request.steps is not None and request.steps > settings.max_steps:
        raise ValueError(f"`steps` may be at most {settings.max_steps} here, got {request.steps}.")
    if num_clips * request.best_of > settings.max_clips:
        raise ValueError(
            f"`num_outputs` times `best_of` may be at most {settings.max_clips} here, got {num_clips * request.best_of}."
        )
    if request.seed + num_clips * request.best_of > 2**63 - 1:
        raise ValueError(f"`seed` must leave room for {num_clips * request.best_of} clips, got {request.seed}.")
