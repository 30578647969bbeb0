"""Bodies of requests, read and checked: what cannot be answered is refused before it waits."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from pipelines.input_checks import check_choices, check_count
from pipelines.media_spec import OUTPUT_FORMATS, RESPONSE_FORMATS, TASK, body_schema, read_values
from pipelines.request import GenerationRequest
from pipelines.service.engine import Engine
from pipelines.service.errors import ServiceError
from pipelines.service.jobs import Job
from pipelines.service.settings import ServiceSettings


# The other convention, of vLLM-Omni: its names, and ours.
ALIAS_FIELDS = {
    "input": "prompt",
    "audio_length": "seconds",
    "negative_prompt": "negative_prompt",
    "guidance_scale": "guidance",
    "num_inference_steps": "steps",
    "seed": "seed",
    "quality": "quality",
}
MAX_CHORDS = 1000


def parse_json(body: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ServiceError: It is none.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServiceError("invalid_request", f"The body must be a JSON object: {error}") from error
    if not isinstance(values, dict):
        raise ServiceError("invalid_request", "The body must be a JSON object.")
    return values


def read_job(body: Mapping[str, Any], engine: Engine, settings: ServiceSettings) -> Job:
    """Turns the body of `POST /v1/generations` into a job.

    Raises:
        ServiceError: It is for another model, or makes no sense.
    """
    known = body_schema()["properties"]
    for name in body:
        if name == "adapters":
            raise ServiceError("not_implemented", "This service applies no adapters.")
        if name not in known:
            raise ServiceError("invalid_request", f"There is no field `{name}`; there are {', '.join(known)}.")
    if body.get("model", engine.model_id) != engine.model_id:
        raise ServiceError("not_found", f"The model here is {engine.model_id!r}, got {body['model']!r}.")
    inputs, parameters = body.get("inputs"), body.get("parameters", {})
    for name, value in (("inputs", inputs), ("parameters", parameters)):
        if not isinstance(value, dict):
            raise ServiceError("invalid_request", f"`{name}` must be an object, got {value!r}.")
    try:
        check_choices("task", [body.get("task", TASK)], [TASK])
        output_format = body.get("output_format", "audio/wav")
        check_choices("output_format", [output_format], list(OUTPUT_FORMATS))
        response_format = body.get("response_format", "url")
        check_choices("response_format", [response_format], RESPONSE_FORMATS)
        request = _read_request(read_values(inputs, parameters))
        num_clips = parameters.get("num_outputs", 1)
        check_count("num_outputs", num_clips)
        check_limits(request, num_clips, settings)
    except ValueError as error:
        raise ServiceError("invalid_request", str(error)) from error
    return make_job(request, num_clips, engine, suffix=OUTPUT_FORMATS[output_format], response_format=response_format)


def read_alias(body: Mapping[str, Any], engine: Engine, settings: ServiceSettings) -> Job:
    """Turns the body of `POST /v1/audio/generate` into a job.

    Raises:
        ServiceError: It makes no sense.
    """
    suffixes = ("wav", "flac", "ogg", "mp3")
    values = {name: value for name, value in body.items() if value is not None}
    suffix = values.pop("response_format", "wav")
    if values.pop("model", engine.model_id) != engine.model_id:
        raise ServiceError("not_found", f"The model here is {engine.model_id!r}, got {body['model']!r}.")
    try:
        check_choices("response_format", [suffix], suffixes)
        if values.pop("audio_start", 0) != 0:
            raise ValueError("`audio_start` must be 0: clips begin at their beginning.")
        if unknown := sorted(values.keys() - ALIAS_FIELDS):
            raise ValueError(f"There is no {', '.join(map(repr, unknown))}; there are {', '.join(ALIAS_FIELDS)}.")
        request = _read_request({ALIAS_FIELDS[name]: value for name, value in values.items()})
        check_limits(request, 1, settings)
    except ValueError as error:
        raise ServiceError("invalid_request", str(error)) from error
    return make_job(request, 1, engine, suffix=f".{suffix}")


def _read_request(values: dict[str, Any]) -> GenerationRequest:
    """A request whose seed, if none is given, is drawn; clients are told which."""
    request = GenerationRequest.from_dict({"seed": secrets.randbelow(2**32)} | values)
    if not isinstance(request.prompt, str):
        raise ValueError(f"`prompt` must be a text, got {request.prompt!r}.")
    return request


def make_job(
    request: GenerationRequest, num_clips: int, engine: Engine, *, suffix: str = ".wav", response_format: str = "url"
) -> Job:
    """A job for so many takes of a request, with everything decided but what only the model can say."""
    requests = [engine.decide(take) for take in request.takes(num_clips)]
    return Job(requests=requests, suffix=suffix, response_format=response_format)


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
