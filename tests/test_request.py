"""A request says what is wrong with it by the name of the argument, and comes back from JSON as it was."""

import json
import subprocess
import sys

import pytest

from pipelines.request import GenerationRequest


def test_a_request_comes_back_from_json_as_it_was(tmp_path):
    for quality in ("low", None, 3, 3.5, [2.0, 4.5], [(0, 2.0), (5, 4.5)]):
        request = GenerationRequest(prompt="piano", quality=quality, best_of=2, best_by=["clap"], seconds=6)
        (tmp_path / "request.json").write_text(json.dumps(request.to_dict()))
        assert GenerationRequest.load(tmp_path / "request.json") == request
        assert hash(request) == hash(GenerationRequest.from_dict(request.to_dict()))
    request = GenerationRequest(prompt="piano", bpm=90, chords=[(0, "Am"), (2.5, "F")])
    assert GenerationRequest.from_dict(request.to_dict()) == request
    request = GenerationRequest(
        prompt=[(0, "piano"), (2, "drums")], inpaint_audio="a.wav", inpaint_start=[1, 3], inpaint_end=[2, 4], loop=True
    )
    assert request.spans == [(1, 2), (3, 4)]
    assert GenerationRequest.from_dict(request.to_dict()) == request
    request = GenerationRequest(prompt="", restore_audio="a.wav", strength=0.5, good_score=4, scorer="mine")
    assert GenerationRequest.from_dict(request.to_dict()) == request
    assert request.with_recording("b.wav").recording == "b.wav"
    by_old_names = GenerationRequest(prompt="piano", best_of=2, best_by=["quality", "alignment"])
    assert by_old_names.best_by == ("overall_quality", "text_alignment")
    assert GenerationRequest.from_dict({"prompt": "piano"}) == GenerationRequest(prompt="piano")


def test_records_of_earlier_versions_are_read(tmp_path):
    settings = {
        "prompt": "solo piano",
        "model": "qamdt-mini",
        "quality": [[0.0, 2.0], [3.0, 4.5]],
        "negative_prompt": "",
        "seconds": 3.0,
        "steps": 8,
        "guidance": 3.5,
        "sampler": None,
        "eta": 0.0,
        "dtype": "float32",
        "seed": 0,
    }
    (tmp_path / "clip.json").write_text(json.dumps({"settings": settings, "sound": {"seconds": 3.0}, "versions": {}}))
    request = GenerationRequest.load(tmp_path / "clip.json")
    assert request.quality == ((0.0, 2.0), (3.0, 4.5))
    assert {name: request.to_dict()[name] for name in settings} == settings


def test_takes_share_no_candidate():
    takes = GenerationRequest(prompt="piano", seed=5, best_of=3).takes(3)
    assert [take.seed for take in takes] == [5, 8, 11]
    assert {take.prompt for take in takes} == {"piano"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "A request must have a `prompt`, got \\[\\]"),
        ({"prompt": "piano", "lenght": 3, "speed": 1}, "A request has no `lenght`, `speed`; it has \\['prompt', "),
        (["piano"], "A request must be an object with a `prompt`, got \\['piano'\\]"),
        ({"prompt": ["piano"]}, "`prompt` must be a text or \\(second, text\\) tuples, got \\('piano',\\)"),
        ({"prompt": [[0, "piano"], [5, "drums"], [3, "flute"]]}, "`prompt` must have rising seconds that begin at 0"),
        ({"prompt": None}, "`prompt` must be a text or \\(second, text\\) tuples, got None"),
        ({"strength": 0.5}, "`strength` goes with `init_audio` or `restore_audio`, got 0.5 without"),
        ({"good_score": 4}, "`good_score` goes with `restore_audio`, got 4 without"),
        ({"restore_audio": "a.wav", "good_score": 9}, "`good_score` must be a number at least 1 and at most 5, got 9"),
        ({"restore_audio": "a.wav", "bpm": 90}, "`bpm` does not go with `restore_audio`, got 90"),
        ({"restore_audio": "a.wav", "quality": "low"}, "`quality` does not go with `restore_audio`, got 'low'"),
        ({"restore_audio": "a.wav", "init_audio": "b.wav"}, "`init_audio` does not go with `restore_audio`"),
        ({"restore_audio": "a.wav", "best_of": 2}, "`best_of` does not go with `restore_audio`, got 2"),
        ({"restore_audio": "a.wav", "prompt": [[0, "a"]]}, "`prompt` must be one text with `restore_audio`"),
        ({"init_audio": "a.wav", "strength": 1.5}, "`strength` must be a number at least 0 and at most 1, got 1.5"),
        ({"init_audio": "a.wav", "seconds": 5}, "`seconds` does not go with `init_audio`"),
        ({"init_audio": "a.wav", "loop": True}, "`loop` does not go with `init_audio`"),
        ({"init_audio": "a.wav", "inpaint_audio": "b.wav"}, "`inpaint_audio` does not go with `init_audio`"),
        ({"init_audio": 3}, "`init_audio` must be a sound file, got 3"),
        ({"inpaint_start": 1, "inpaint_end": 2}, "`inpaint_start` goes with `inpaint_audio`"),
        ({"inpaint_audio": "a.wav", "inpaint_start": 1}, "must hold as many seconds, .* got \\[1\\] and \\[\\]"),
        ({"inpaint_audio": "a.wav", "inpaint_start": 2, "inpaint_end": 1}, "each span ending after it begins"),
        ({"inpaint_audio": "a.wav", "inpaint_start": [-1], "inpaint_end": [1]}, "`inpaint_start` must be a number"),
        (
            {"inpaint_audio": "a.wav", "inpaint_start": "1", "inpaint_end": 2},
            "`inpaint_start` must be seconds, got '1'",
        ),
        ({"inpaint_audio": "a.wav", "audio_start": -1}, "`audio_start` must be a number at least 0, got -1"),
        ({"loop": 1}, "`loop` must be true or false, got 1"),
        ({"prompt": "piano \ud800"}, "`prompt` must be text in UTF-8, got 'piano .*ud800'"),
        ({"negative_prompt": None}, "`negative_prompt` must be a text, got None"),
        ({"quality": "excellent"}, '`quality` must be "high", "medium", "low", a score .* got \'excellent\''),
        ({"quality": [["high"], ["low"]]}, "`quality` must be .* got"),
        ({"quality": [[3, 2.0], [1, 3.0]]}, "`quality` must have rising seconds of at least 0"),
        ({"quality": True}, "`quality` must be .* got True"),
        ({"seconds": 0}, "`seconds` must be a number greater than 0, got 0"),
        ({"seconds": "10"}, "`seconds` must be a number greater than 0, got '10'"),
        ({"steps": 2.5}, "`steps` must be an integer of at least 1, got 2.5"),
        ({"guidance": float("nan")}, "`guidance` must be a number at least 0, got nan"),
        ({"sampler": "magic"}, "`sampler` must be among 'dpm\\+\\+', .* got 'magic'"),
        ({"bpm": 1000}, "`bpm` must be a number from 40 to 220"),
        ({"key": "H"}, "`key` must be a tonic and a mode"),
        ({"chords": [[1, "Am"], [0, "F"]]}, "`chords` must have rising seconds"),
        ({"plan_music": 1}, "`plan_music` must be true or false, got 1"),
        ({"eta": 2}, "`eta` must be a number at least 0 and at most 1, got 2"),
        ({"seed": -1}, "`seed` must be an integer of at least 0 and at most 9223372036854775807, got -1"),
        ({"seed": True}, "`seed` must be an integer"),
        ({"best_of": 0}, "`best_of` must be an integer of at least 1, got 0"),
        ({"best_by": ["clap"]}, "`best_by` goes with `best_of` of at least 2"),
        ({"best_of": 2, "best_by": "clap"}, "`best_by` must be a list of criteria, got 'clap'"),
        ({"best_of": 2, "best_by": ["clap", "clap"]}, "`best_by` must name each criterion once"),
        ({"best_of": 2, "best_by": ["quality", "overall_quality"]}, "`best_by` must name each criterion once"),
        ({"sampling_rate": 44_100.5}, "`sampling_rate` must be an integer of at least 8000 and at most 192000, got"),
        ({"loudness": float("nan")}, "`loudness` must be a number at least -70 and at most 0, got nan"),
        ({"scorer": "a/b"}, "`scorer` goes with `best_of` of at least 2"),
        ({"lora": ["mine"]}, "`lora` must be a list of \\(folder or Hub id, scale\\) pairs"),
        ({"lora": [["mine", "much"]]}, "`lora` must be a number"),
        ({"lora": [["", 1]]}, "`lora` must name folders or Hub ids"),
        ({"model": ""}, "`model` must be a folder or a Hub id, got ''"),
        ({"dtype": "float64"}, "`dtype` must be among 'auto', 'float32', 'bfloat16', got 'float64'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(values, message):
    if isinstance(values, dict) and values and "prompt" not in values:
        values = {"prompt": "piano"} | values
    with pytest.raises(ValueError, match=message):
        GenerationRequest.from_dict(values)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b'{"settings": 3}'])
def test_files_without_request_are_refused_by_name(tmp_path, content):
    (tmp_path / "request.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"request.json' holds no request: "):
        GenerationRequest.load(tmp_path / "request.json")


def test_reading_a_request_imports_nothing_slow():
    code = "import sys, pipelines.request; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
