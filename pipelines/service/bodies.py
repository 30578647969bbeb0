"""Bodies of requests, read and checked: what cannot be answered is refused before it waits."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from pipelines.input_checks import check_choices, check_count
from pipelines.media_spec import OUTPUT_FORMATS, RESPONSE_FORMATS, TASKS, find_task, read_values
from pipelines.request import GenerationRequest
from pipelines.service.acceptance import Order, check_limits
from pipelines.service.errors import ServiceError
from pipelines.service.generation_queue import GenerationQueue
from pipelines.service.recordings import read_sound
from pipelines.service.settings import ServiceSettings
from pipelines.service.uploads import detach_sound


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
FIELDS = ("model", "task", "inputs", "parameters", "output_format", "response_format")
PLACEHOLDER = "recording"  # until it has a name


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


def read_order(body: bytes, queue: GenerationQueue, settings: ServiceSettings, base_url: str) -> Order:
    """Reads the body of `POST /v1/generations`.

    Args:
        body: The body.
        queue: The queue that it is for; a sound may be one of its files.
        settings: The limits.
        base_url: The service's address, as the client knows it.

    Raises:
        ServiceError: It is for another model, or makes no sense.
    """
    rest, sent = detach_sound(body, settings.max_body_bytes)
    values = parse_json(rest)
    for name in values:
        if name == "adapters":
            raise ServiceError("not_implemented", "This service applies no adapters.")
        if name not in FIELDS:
            raise ServiceError("invalid_request", f"There is no field `{name}`; there are {', '.join(FIELDS)}.")
    check_model(values, queue)
    inputs, parameters = values.get("inputs"), values.get("parameters", {})
    for name, value in (("inputs", inputs), ("parameters", parameters)):
        if not isinstance(value, dict):
            raise ServiceError("invalid_request", f"`{name}` must be an object, got {value!r}.")
    try:
        task = find_task(values.get("task"), inputs)
        output_format = values.get("output_format", "audio/wav")
        check_choices("output_format", [output_format], list(OUTPUT_FORMATS))
        response_format = values.get("response_format", "url")
        check_choices("response_format", [response_format], RESPONSE_FORMATS)
        asked, sound, name = read_values(task, inputs, parameters), None, TASKS[task].sound
        if name is not None:
            sound = read_sound(name, asked[name], sent, base_url=base_url, find_file=queue.find_file)
            asked[name] = PLACEHOLDER
        request = _read_request(asked)
        num_clips = parameters.get("num_outputs", 1)
        check_count("num_outputs", num_clips)
        check_limits(request, num_clips, settings)
    except ValueError as error:
        raise ServiceError("invalid_request", str(error)) from error
    suffix = OUTPUT_FORMATS[output_format]
    return Order(request=request, num_clips=num_clips, suffix=suffix, response_format=response_format, sound=sound)


def check_model(values: Mapping[str, Any], queue: GenerationQueue) -> None:
    """Refuses a body for another model than the one that is here."""
    model = queue.engine.model_id
    if values.get("model", model) != model:
        raise ServiceError("not_found", f"The model here is {model!r}, got {values['model']!r}.")


def read_alias(body: bytes, queue: GenerationQueue, settings: ServiceSettings) -> Order:
    """Reads the body of `POST /v1/audio/generate`.

    Raises:
        ServiceError: It makes no sense.
    """
    suffixes = ("wav", "flac", "ogg", "mp3")
    values = {name: value for name, value in parse_json(body).items() if value is not None}
    suffix = values.pop("response_format", "wav")
    check_model(values, queue)
    values.pop("model", None)
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
    return Order(request=request, suffix=f".{suffix}")


def _read_request(values: dict[str, Any]) -> GenerationRequest:
    """A request whose seed, if none is given, is drawn; clients are told which."""
    request = GenerationRequest.from_dict({"seed": secrets.randbelow(2**32)} | values)
    if not isinstance(request.prompt, str):
        raise ValueError(f"`prompt` must be a text, got {request.prompt!r}.")
    return request
