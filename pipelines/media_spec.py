"""What a request can be told from outside, under the names of the Generative Media Spec (gms/0.1).

The manifest of a model (`gms.json` in its folder), the service and its OpenAPI document are made of the one table here.
What names files or folders of the machine (`model`, `scorer`, `lora`) is not in it: it is not for strangers to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.input_checks import check_choices
from pipelines.request import CRITERIA, RESTORING, SAMPLER_NAMES, SHORT_CRITERIA, GenerationRequest
from qamdt.audio_formats import MAX_SAMPLING_RATE, MIN_SAMPLING_RATE


SPEC_VERSION = "gms/0.1"
MANIFEST_NAME = "gms.json"
OUTPUT_FORMATS = {"audio/wav": ".wav", "audio/flac": ".flac", "audio/ogg": ".ogg", "audio/mpeg": ".mp3"}
RESPONSE_FORMATS = ("url", "b64_json")

_DEFAULT = GenerationRequest
MODALITIES = {"in": ["text", "audio"], "out": ["audio"]}
# A sound is sent with the body, or named by the address of a file that the service made.
SOUND_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"type": "string", "enum": ["audio"]},
        "base64": {"type": "string", "contentEncoding": "base64"},
        "url": {"type": "string", "format": "uri"},
        "media_type": {"type": "string", "pattern": "^audio/"},
    },
    "oneOf": [{"required": ["base64", "media_type"]}, {"required": ["url"]}],
    "additionalProperties": False,
}
Specs = dict[str, dict[str, Any]]
# Where the spec's name is not the request's own.
FIELDS = {"duration": "seconds", "guidance_scale": "guidance"}
# A parameter without `type` may be of several: its `schema` says which.
_MUSIC: Specs = {
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
_LOOP: Specs = {"loop": {"type": "boolean", "default": False, "description": "Ends where it begins, without fades."}}
_SECONDS = {"type": "array", "items": {"type": "number", "minimum": 0}}
_STRENGTH = {"type": "number", "min": 0, "max": 1, "description": "How much is changed."}
_TEXTS: Specs = {"prompt": {"type": "text", "required": True}, "negative_prompt": {"type": "text"}}
_SOUND = {"type": "audio", "required": True}
_RESTORED = ("steps", "guidance_scale", "sampler", "seed", "sampling_rate", "loudness", "fade_ms")


@dataclass(frozen=True)
class Task:
    """One kind of music making: what goes in, and what can be said about it.

    Args:
        inputs: Texts and sounds, by name.
        parameters: All else, by name.
    """

    inputs: Specs
    parameters: Specs

    @property
    def sound(self) -> str | None:
        """The input that is a sound, if one is; no two tasks have the same."""
        return next((name for name, spec in self.inputs.items() if spec["type"] == "audio"), None)


TASKS = {
    "text_to_audio": Task(_TEXTS, _MUSIC | _LOOP),
    "audio_to_audio": Task(
        _TEXTS | {"init_audio": _SOUND},
        {name: spec for name, spec in _MUSIC.items() if name != "duration"}
        | {"plan_music": {"type": "boolean", "default": False}, "strength": _STRENGTH | {"default": 0.5}},
    ),
    "inpaint": Task(
        _TEXTS | {"inpaint_audio": _SOUND},
        _MUSIC
        | _LOOP
        | {
            "plan_music": {"type": "boolean", "default": False},
            "inpaint_start": _SECONDS | {"description": "Seconds at which spans begin that are played anew."},
            "inpaint_end": _SECONDS | {"description": "Seconds at which they end."},
            "audio_start": {
                "type": "number",
                "min": 0,
                "description": "Second of the clip at which the sound begins.",
            },
        },
    ),
    "restore": Task(
        {"restore_audio": _SOUND, "prompt": {"type": "text"}},
        {name: _MUSIC[name] for name in _RESTORED}
        | {
            "guidance_scale": {"type": "number", "default": RESTORING["guidance"], "min": 0},
            "fade_ms": {"type": "number", "default": RESTORING["fade_ms"], "min": 0},
            "strength": _STRENGTH | {"description": "How much is changed; chosen from the scores if nobody says it."},
            "good_score": {"type": "number", "min": 1, "max": 5, "description": "What scores as much is left alone."},
        },
    ),
}


def model_manifest(model_id: str, *, seconds: float | None) -> dict[str, Any]:
    """The manifest of a model.

    Args:
        model_id: What the model is called.
        seconds: The length that it was built for, if that is known.
    """
    tasks = {}
    for name, task in TASKS.items():
        parameters = {
            parameter: {key: value for key, value in spec.items() if key != "schema"}
            for parameter, spec in task.parameters.items()
        }
        if seconds is not None and task.sound is None:  # a sound says its own length
            parameters["duration"] |= {"default": seconds}
        tasks[name] = {"inputs": task.inputs, "outputs": {"audio": {"type": "audio"}}, "parameters": parameters}
    return {"id": model_id, "modalities": MODALITIES, "tasks": tasks}


def find_task(task: Any, inputs: Mapping[str, Any]) -> str:
    """The task that is named, or the one that the inputs are for.

    Raises:
        ValueError: There is none of this name.
    """
    if task is None:
        return next((name for name, task in TASKS.items() if task.sound in inputs), "text_to_audio")
    check_choices("task", [task], list(TASKS))
    return task


def read_values(task: str, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Turns inputs and parameters into the fields of a `GenerationRequest`; `num_outputs` is no part of it.

    The sound, if there is one, stays what it was.

    Raises:
        ValueError: There is no input or parameter of a name, one is missing, or a text is none.
    """
    known = TASKS[task]
    for kind, given, names in (("input", inputs, known.inputs), ("parameter", parameters, known.parameters)):
        for name in given:
            if name not in names:
                raise ValueError(f"The task {task!r} has no {kind} `{name}`; there are {', '.join(names)}.")
    for name, spec in known.inputs.items():
        if spec.get("required") and name not in inputs:
            raise ValueError(f"The task {task!r} needs the input `{name}`, got {', '.join(inputs) or 'none'}.")
        if spec["type"] == "text" and not isinstance(inputs.get(name, ""), str):
            raise ValueError(f"`{name}` must be a text, got {inputs[name]!r}.")
    values = {FIELDS.get(name, name): value for name, value in parameters.items() if name != "num_outputs"}
    start = {"prompt": "", **RESTORING} if task == "restore" else {}
    return {**start, **inputs, **values}


def body_schema() -> dict[str, Any]:
    """The JSON schema of the body of `POST /v1/generations`."""
    return {"anyOf": [_task_schema(name, task) for name, task in TASKS.items()]}


def _task_schema(name: str, task: Task) -> dict[str, Any]:
    inputs = {key: {"type": "string"} if spec["type"] == "text" else SOUND_SCHEMA for key, spec in task.inputs.items()}
    parameters = {key: _schema(spec) for key, spec in task.parameters.items()}
    return {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "model": {"type": "string"},
            "task": {"type": "string", "enum": [name]},
            "inputs": {
                "type": "object",
                "required": [key for key, spec in task.inputs.items() if spec.get("required")],
                "properties": inputs,
                "additionalProperties": False,
            },
            "parameters": {"type": "object", "properties": parameters, "additionalProperties": False},
            "output_format": {"type": "string", "enum": list(OUTPUT_FORMATS)},
            "response_format": {"type": "string", "enum": list(RESPONSE_FORMATS)},
        },
    }


def _schema(spec: Mapping[str, Any]) -> dict[str, Any]:
    names = {"type": "type", "min": "minimum", "max": "maximum", "enum": "enum", "items": "items"}
    schema = {names[key]: value for key, value in spec.items() if key in names}
    return {**schema, **spec.get("schema", {})}
