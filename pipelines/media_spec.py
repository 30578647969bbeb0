"""What a request can be told from outside, under the names of the Generative Media Spec (gms/0.1).

The manifest of a model (`gms.json` in its folder), the service and its OpenAPI document are made of the one table here.
What names files or folders of the machine (`model`, `scorer`, `lora`) is not in it: it is not for strangers to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.request import CRITERIA, SAMPLER_NAMES, SHORT_CRITERIA, GenerationRequest
from qamdt.audio_formats import MAX_SAMPLING_RATE, MIN_SAMPLING_RATE


SPEC_VERSION = "gms/0.1"
MANIFEST_NAME = "gms.json"
TASK = "text_to_audio"
OUTPUT_FORMATS = {"audio/wav": ".wav", "audio/flac": ".flac", "audio/ogg": ".ogg", "audio/mpeg": ".mp3"}
RESPONSE_FORMATS = ("url", "b64_json")

_DEFAULT = GenerationRequest
INPUTS: dict[str, dict[str, Any]] = {
    "prompt": {"type": "text", "required": True},
    "negative_prompt": {"type": "text"},
}
# Where the spec's name is not the request's own.
FIELDS = {"duration": "seconds", "guidance_scale": "guidance"}
# A parameter without `type` may be of several: its `schema` says which.
PARAMETERS: dict[str, dict[str, Any]] = {
    "quality": {
        "default": _DEFAULT.quality,
        "description": "A word, a score from 1 to 5, a curve of scores or of [second, score] pairs, or null.",
        "schema": {
            "anyOf": [
                {"type": "string", "enum": ["high", "medium", "low"]},
                {"type": "number", "minimum": 1, "maximum": 5},
                {"type": "array", "items": {"type": "number", "minimum": 1, "maximum": 5}, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
                    "minItems": 1,
                },
                {"type": "null"},
            ]
        },
    },
    "duration": {"type": "number", "description": "Length in seconds."},
    "bpm": {"type": "number", "min": 40, "max": 220},
    "key": {"type": "string", "description": 'Such as "A minor".'},
    "chords": {
        "description": 'A bar each, such as "Am F C G", or [second, symbol] pairs.',
        "schema": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "array"}}]},
    },
    "time_signature": {"type": "string", "enum": ["4/4", "3/4"]},
    "plan_music": {"type": "boolean", "default": True},
    "steps": {"type": "integer", "min": 1},
    "guidance_scale": {"type": "number", "default": _DEFAULT.guidance, "min": 0},
    "sampler": {"type": "string", "enum": list(SAMPLER_NAMES)},
    "eta": {"type": "number", "min": 0, "max": 1},
    "seed": {"type": "integer", "min": 0, "max": 2**63 - 1},
    "num_outputs": {"type": "integer", "default": 1, "min": 1},
    "best_of": {"type": "integer", "default": _DEFAULT.best_of, "min": 1},
    "best_by": {"type": "array", "items": {"type": "string", "enum": [*CRITERIA, *SHORT_CRITERIA]}},
    "sampling_rate": {"type": "integer", "min": MIN_SAMPLING_RATE, "max": MAX_SAMPLING_RATE},
    "loudness": {"type": "number", "max": 0, "description": "In LUFS; players expect about -14."},
    "fade_ms": {"type": "number", "default": _DEFAULT.fade_ms, "min": 0},
}


def model_manifest(model_id: str, *, seconds: float | None) -> dict[str, Any]:
    """The manifest of a model.

    Args:
        model_id: What the model is called.
        seconds: The length that it was built for, if that is known.
    """
    parameters = {
        name: {key: value for key, value in spec.items() if key != "schema"} for name, spec in PARAMETERS.items()
    }
    if seconds is not None:
        parameters["duration"] = {**parameters["duration"], "default": seconds}
    task = {"inputs": INPUTS, "outputs": {"audio": {"type": "audio"}}, "parameters": parameters}
    return {"id": model_id, "modalities": {"in": ["text"], "out": ["audio"]}, "tasks": {TASK: task}}


def read_values(inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Turns inputs and parameters into the fields of a `GenerationRequest`; `num_outputs` is no part of it.

    Raises:
        ValueError: There is no input or parameter of a name, or an input is no text.
    """
    for kind, given, known in (("input", inputs, INPUTS), ("parameter", parameters, PARAMETERS)):
        for name in given:
            if name not in known:
                raise ValueError(f"There is no {kind} `{name}`; there are {', '.join(known)}.")
    for name, text in inputs.items():
        if not isinstance(text, str):
            raise ValueError(f"`{name}` must be a text, got {text!r}.")
    values = {FIELDS.get(name, name): value for name, value in parameters.items() if name != "num_outputs"}
    return {**inputs, **values}


def body_schema() -> dict[str, Any]:
    """The JSON schema of the body of `POST /v1/generations`."""
    properties = {name: _schema(spec) for name, spec in PARAMETERS.items()}
    texts = {name: {"type": "string"} for name in INPUTS}
    return {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "model": {"type": "string"},
            "task": {"type": "string", "enum": [TASK]},
            "inputs": {
                "type": "object",
                "required": ["prompt"],
                "properties": texts,
                "additionalProperties": False,
            },
            "parameters": {"type": "object", "properties": properties, "additionalProperties": False},
            "output_format": {"type": "string", "enum": list(OUTPUT_FORMATS)},
            "response_format": {"type": "string", "enum": list(RESPONSE_FORMATS)},
        },
    }


def _schema(spec: Mapping[str, Any]) -> dict[str, Any]:
    names = {"type": "type", "min": "minimum", "max": "maximum", "enum": "enum", "items": "items"}
    schema = {names[key]: value for key, value in spec.items() if key in names}
    return {**schema, **spec.get("schema", {})}
