"""One table makes the manifest, the document of the service and the fields of a request."""

import json
from dataclasses import fields

import pytest

from pipelines.clips import decide
from pipelines.media_spec import FIELDS, INPUTS, MANIFEST_NAME, PARAMETERS, body_schema, model_manifest, read_values
from pipelines.request import GenerationRequest
from qamdt.embedded import EMBEDDED_MODEL_DIR


def test_every_name_is_a_field_of_a_request_and_no_file_can_be_named():
    names = {FIELDS.get(name, name) for name in (*INPUTS, *PARAMETERS)} - {"num_outputs"}
    known = {field.name for field in fields(GenerationRequest)}
    assert names <= known
    assert not names & {"model", "scorer", "lora"}


def test_defaults_are_those_of_a_request():
    decided = decide(
        GenerationRequest(prompt="piano"), "cpu"
    )  # to plan music is the default where there is no recording
    for name, spec in PARAMETERS.items():
        if "default" in spec and name != "num_outputs":
            source = decided if name == "plan_music" else GenerationRequest
            assert spec["default"] == getattr(source, FIELDS.get(name, name))


def test_the_embedded_model_has_its_manifest():
    manifest = json.loads((EMBEDDED_MODEL_DIR / MANIFEST_NAME).read_text())
    assert manifest == model_manifest("qamdt-mini", seconds=10.24)


def test_values_are_read_by_their_names():
    values = read_values({"prompt": "piano"}, {"duration": 3, "guidance_scale": 2, "num_outputs": 4})
    assert values == {"prompt": "piano", "seconds": 3, "guidance": 2}
    with pytest.raises(ValueError, match="There is no input `audio`; there are prompt, negative_prompt"):
        read_values({"audio": 1}, {})
    with pytest.raises(ValueError, match="There is no parameter `lora`"):
        read_values({"prompt": "piano"}, {"lora": []})


def test_the_schema_is_json():
    schema = json.loads(json.dumps(body_schema()))
    assert schema["properties"]["parameters"]["properties"]["steps"] == {"type": "integer", "minimum": 1}
    assert "anyOf" in schema["properties"]["parameters"]["properties"]["quality"]
