"""One table makes the manifest, the document of the service and the fields of a request."""

import json
from dataclasses import fields

import pytest

from pipelines.clips import decide
from pipelines.media_spec import FIELDS, MANIFEST_NAME, TASKS, body_schema, find_task, model_manifest, read_values
from pipelines.request import RECORDINGS, GenerationRequest
from qamdt.embedded import EMBEDDED_MODEL_DIR


def test_every_name_is_a_field_of_a_request_and_no_file_can_be_named():
    known = {field.name for field in fields(GenerationRequest)}
    for task in TASKS.values():
        names = {FIELDS.get(name, name) for name in (*task.inputs, *task.parameters)} - {"num_outputs"}
        assert names <= known
        assert not names & {"model", "scorer", "lora"}
        assert not {FIELDS.get(name, name) for name in task.parameters} & set(RECORDINGS)


@pytest.mark.parametrize("name", TASKS)
def test_defaults_are_those_of_a_request(name):
    task = TASKS[name]
    sound = {} if task.sound is None else {task.sound: "a.wav"}
    decided = decide(GenerationRequest.from_dict(read_values(name, {"prompt": "piano", **sound}, {})), "cpu")
    for parameter, spec in task.parameters.items():
        if "default" in spec and parameter != "num_outputs":
            assert spec["default"] == getattr(decided, FIELDS.get(parameter, parameter))


def test_the_embedded_model_has_its_manifest():
    manifest = json.loads((EMBEDDED_MODEL_DIR / MANIFEST_NAME).read_text())
    assert manifest == model_manifest("qamdt-mini", seconds=10.24)


def test_values_are_read_by_their_names():
    values = read_values("text_to_audio", {"prompt": "piano"}, {"duration": 3, "guidance_scale": 2, "num_outputs": 4})
    assert values == {"prompt": "piano", "seconds": 3, "guidance": 2}
    assert read_values("restore", {"restore_audio": 1}, {"strength": 0.5}) == {
        "prompt": "", "restore_audio": 1, "strength": 0.5, "guidance": 1.0, "fade_ms": 0.0
    }  # fmt: skip
    for name, inputs, parameters, message in [
        ("text_to_audio", {"audio": 1}, {}, "has no input `audio`; there are prompt, negative_prompt"),
        ("text_to_audio", {"prompt": "piano"}, {"lora": []}, "has no parameter `lora`"),
        ("audio_to_audio", {"prompt": "piano", "init_audio": 1}, {"duration": 3}, "has no parameter `duration`"),
        ("inpaint", {"prompt": "piano"}, {}, "needs the input `inpaint_audio`, got prompt"),
        ("restore", {"restore_audio": 1, "prompt": 3}, {}, "`prompt` must be a text, got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_values(name, inputs, parameters)


def test_a_task_is_known_by_its_sound():
    assert find_task(None, {"prompt": "piano"}) == "text_to_audio"
    assert find_task(None, {"inpaint_audio": {}}) == "inpaint"
    assert find_task("restore", {}) == "restore"
    for task in ("text_to_image", 3, ["restore"]):
        with pytest.raises(ValueError, match="`task` must be among"):
            find_task(task, {})


def test_the_schema_is_json():
    schemas = {
        schema["properties"]["task"]["enum"][0]: schema["properties"]
        for schema in json.loads(json.dumps(body_schema()))["anyOf"]
    }
    assert schemas.keys() == TASKS.keys()
    parameters = schemas["text_to_audio"]["parameters"]["properties"]
    assert parameters["steps"] == {"type": "integer", "minimum": 1}
    assert "anyOf" in parameters["quality"]
    assert schemas["restore"]["inputs"]["required"] == ["restore_audio"]
