"""The `qamdt` command, run in process: what it writes, what it skips, and how it fails."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from pipelines.cli import main, parse_lora, parse_quality
from pipelines.generate import slug
from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.request import SAMPLER_NAMES
from qamdt.music import NUM_MUSIC_FEATURES
from qamdt.precision import preferred_dtype


@pytest.fixture
def run(pipe_dir, monkeypatch, tmp_path):
    """Runs `qamdt` in an empty folder, with the tiny model as default and few steps."""
    monkeypatch.setenv("QAMDT_MODEL", str(pipe_dir))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        few_steps = ["--steps", "2"] if arguments[0] == "generate" and "--steps" not in arguments else []
        return main([*map(str, arguments), *few_steps])

    return run


def read(path):
    return soundfile.read(path)[0]


def test_one_prompt_makes_one_file_and_its_record(run, tmp_path):
    assert (
        run("generate", "calm piano", "--quality", "0:2,0.2:4.5", "--seconds", 0.5, "--seed", 3, "-o", "out.wav") == 0
    )
    dtype = str(preferred_dtype("cpu")).removeprefix("torch.")
    assert soundfile.info(tmp_path / "out.wav").samplerate == 16_000
    assert len(read(tmp_path / "out.wav")) == 8000
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["settings"] == {
        "prompt": "calm piano",
        "model": str(tmp_path / "pipe"),
        "quality": [[0.0, 2.0], [0.2, 4.5]],
        "negative_prompt": "",
        "bpm": None,
        "key": None,
        "chords": None,
        "time_signature": None,
        "plan_music": True,
        "loop": False,
        "init_audio": None,
        "strength": None,
        "inpaint_audio": None,
        "inpaint_start": None,
        "inpaint_end": None,
        "audio_start": None,
        "restore_audio": None,
        "good_score": None,
        "seconds": 0.5,
        "steps": 2,
        "guidance": 3.5,
        "sampler": None,
        "eta": 0.0,
        "lora": [],
        "dtype": dtype,
        "seed": 3,
        "best_of": 1,
        "best_by": None,
        "scorer": None,
        "sampling_rate": None,
        "loudness": None,
        "fade_ms": 5.0,
    }
    assert record["sound"] == {"sampling_rate": 16_000, "seconds": 0.5, "gain_db": 0.0, "loudness_lufs": None}
    assert record["models"].keys() == {"model"}
    assert set(record["versions"]) == {"qamdt", "torch", "diffusers", "transformers", "python"}


def test_a_recording_is_changed_continued_and_made_a_loop(run, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal((4410, 2))
    soundfile.write(tmp_path / "in.wav", noise, 11_025)
    assert run("generate", "piano", "--init-audio", "in.wav", "--strength", 0.2, "-o", "changed.wav") == 0
    assert len(read(tmp_path / "changed.wav")) == 6400
    record = json.loads((tmp_path / "changed.json").read_text())
    assert {name: record["settings"][name] for name in ("init_audio", "strength", "plan_music")} == {
        "init_audio": "in.wav",
        "strength": 0.2,
        "plan_music": False,
    }
    assert run("generate", "--request", "changed.json", "-o", "again.wav") == 0
    np.testing.assert_array_equal(read(tmp_path / "again.wav"), read(tmp_path / "changed.wav"))

    spans = ("--inpaint-start", 0.1, 0.3, "--inpaint-end", 0.15, 0.35, "--seconds", 0.6)
    assert run("generate", "piano", "--inpaint-audio", "in.wav", *spans, "--audio-start", 0.1, "-o", "filled.wav") == 0
    filled = read(tmp_path / "filled.wav")
    assert len(filled) == 9600
    assert record["recording"] == json.loads((tmp_path / "filled.json").read_text())["recording"]
    assert run("generate", "piano", "--then", 0.2, "drums", "--loop", "--seconds", 0.5, "-o", "loop.wav") == 0
    assert len(read(tmp_path / "loop.wav")) == 24 * 320
    assert abs(read(tmp_path / "loop.wav")[[0, -1]]).min() > 0  # no fades
    settings = json.loads((tmp_path / "loop.json").read_text())["settings"]
    assert settings["prompt"] == [[0.0, "piano"], [0.2, "drums"]]
    assert run("generate", "piano", "--inpaint-audio", "loop.wav", "--loop", "-o", "looped.wav") == 0
    assert run("generate", "piano", "--inpaint-audio", "loop.wav", "--loop", "-o", "loop.wav") == 1
    assert run("generate", "piano", "--init-audio", "in.wav", "-o", "in.wav") == 1


def test_another_recording_of_the_same_name_is_done_again(run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("piano")
    command = ("generate", "--prompts", "prompts.txt", "--out-dir", "out", "--init-audio", "in.wav", "--strength", 0.1)
    for seed, made_before in ((0, 0), (0, 1), (1, 0)):
        if not made_before:
            soundfile.write(
                tmp_path / "in.wav", 0.1 * np.random.default_rng(seed).standard_normal(3200 + seed), 16_000
            )
        assert run(*command) == 0
        assert f"1 to make, {made_before} of them done before" in capsys.readouterr().out


def test_a_take_depends_on_its_own_seed_only(run, tmp_path):
    assert run("generate", "piano", "--seed", 5, "--num", 2, "-o", "several.flac") == 0
    assert run("generate", "piano", "--seed", 6, "-o", "alone.flac") == 0
    assert np.abs(read(tmp_path / "several-2.flac") - read(tmp_path / "alone.flac")).max() < 1e-3
    assert json.loads((tmp_path / "several-2.json").read_text())["settings"]["seed"] == 6


def test_a_file_of_prompts_is_continued_where_it_stopped(run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("calm piano\n\n# not this\nfast drums!\n", encoding="utf-8")
    command = ("generate", "--prompts", "prompts.txt", "--out-dir", "out", "--num", 2)
    assert run(*command) == 0
    names = ["0001-calm-piano-1", "0001-calm-piano-2", "0004-fast-drums-1", "0004-fast-drums-2"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.wav")) == names
    first = read(tmp_path / "out" / "0004-fast-drums-2.wav")

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "0004-fast-drums-2.wav").unlink()
    assert run(*command) == 0
    assert "4 to make, 3 of them done before." in capsys.readouterr().out
    changed = {path.stem for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"0004-fast-drums-2"}
    assert np.abs(read(tmp_path / "out" / "0004-fast-drums-2.wav") - first).max() < 1e-3

    assert run(*command) == 0
    assert "4 to make, 4 of them done before." in capsys.readouterr().out
    assert run(*command, "--quality", "low") == 0
    assert "4 to make, 0 of them done before." in capsys.readouterr().out


@pytest.mark.parametrize("sampler", [None, "paper"])
def test_the_record_of_a_clip_gives_that_clip_again(run, tmp_path, monkeypatch, sampler):
    options = ["--quality", "2,4.5", "--seconds", 0.3, "--seed", 3, "--guidance", 2, "--negative-prompt", "drums"]
    options += [] if sampler is None else ["--sampler", sampler]
    assert run("generate", "calm piano", *options, "-o", "first.wav") == 0
    monkeypatch.setenv("QAMDT_MODEL", "another")  # the record names the model that was the default then
    assert main(["generate", "--request", "first.json", "-o", "again.wav"]) == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "first.wav").read_bytes()
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((tmp_path / "first.json").read_text())


def test_tempo_key_and_chords_reach_the_record(build_components, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = QAMDTPipeline(**build_components(num_music_features=NUM_MUSIC_FEATURES))
    pipe.save_pretrained("model")
    music = ["--bpm", "120", "--key", "A minor", "--chords", "Am F", "--time-signature", "3/4"]
    assert main(["generate", "piano", *music, "--model", "model", "--steps", "2", "-o", "first.wav"]) == 0
    record = json.loads((tmp_path / "first.json").read_text())
    assert {name: record["settings"][name] for name in ("bpm", "key", "chords", "time_signature")} == {
        "bpm": 120.0,
        "key": "A minor",
        "chords": "Am F",
        "time_signature": "3/4",
    }
    assert (record["music"]["tempo_bpm"], record["music"]["chords"]) == (120.0, [[0.0, "Am"]])
    assert main(["generate", "--request", "first.json", "--num", "1", "-o", "again.wav"]) == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "first.wav").read_bytes()
    assert main(["generate", "piano", "--no-plan", "--model", "model", "--steps", "2"]) == 0
    assert json.loads((tmp_path / "music.json").read_text())["music"]["tempo_bpm"] is None


def test_what_is_given_beside_a_request_replaces_what_it_says(run, tmp_path):
    (tmp_path / "request.json").write_text(json.dumps({"prompt": "piano", "quality": [2, 4.5], "seed": 7}))
    assert run("generate", "drums", "--request", "request.json", "--seed", 8, "--eta", 0) == 0
    settings = json.loads((tmp_path / "music.json").read_text())["settings"]
    assert (settings["prompt"], settings["quality"], settings["seed"]) == ("drums", [2, 4.5], 8)


def test_clips_of_a_model_that_was_trained_on_are_made_again(run, pipe_dir, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("calm piano\n", encoding="utf-8")
    command = ("generate", "--prompts", "prompts.txt", "--out-dir", "out")
    assert run(*command) == 0
    weights = next((pipe_dir / "transformer").glob("*.safetensors"))
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert run(*command) == 0
    assert "1 to make, 0 of them done before." in capsys.readouterr().out
    assert run(*command) == 0
    assert "1 to make, 1 of them done before." in capsys.readouterr().out


def test_adapters_add_up_and_are_part_of_the_record(run, pipe, tmp_path):
    peft = pytest.importorskip("peft")
    for name in ("a", "b"):
        config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipe.transformer.add_adapter(config, name)
        layers = peft.get_peft_model_state_dict(pipe.transformer, adapter_name=name)
        pipe.save_lora_weights(tmp_path / name, layers, transformer_lora_adapter_metadata=config.to_dict())
    both = ("--lora", "a", "--lora", "b:0.5")
    for output, options in (("plain", ()), ("off", ("--lora", "a:0")), ("a", ("--lora", "a")), ("both", both)):
        assert run("generate", "piano", "--dtype", "float32", *options, "-o", f"{output}.wav") == 0
    clips = {name: read(tmp_path / f"{name}.wav") for name in ("plain", "off", "a", "both")}
    np.testing.assert_allclose(clips["off"], clips["plain"], atol=1e-4)
    assert len({clip.tobytes() for clip in clips.values()}) >= 3
    record = json.loads((tmp_path / "both.json").read_text())
    assert record["settings"]["lora"] == [["a", 1.0], ["b", 0.5]]
    assert record["models"].keys() == {"model", "lora a", "lora b"}
    assert main(["generate", "--request", "both.json", "-o", "again.wav"]) == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "both.wav").read_bytes()


def test_what_is_no_adapter_is_named(run, tmp_path, capsys):
    pytest.importorskip("peft")
    (tmp_path / "empty").mkdir()
    assert run("generate", "piano", "--lora", "empty") == 1
    assert "`lora` must name adapters of the model" in capsys.readouterr().err
    assert run("generate", "piano", "--model", "pipe", "--lora", "a", "--lora", "a:2") == 2
    assert "`lora` must name each adapter once" in capsys.readouterr().err


def test_quiet_says_nothing_and_a_vain_wish_gets_a_line(run, pipe_dir, capfd, caplog):
    (pipe_dir / "README.md").write_text("---\ncannot: [{phrases: [drums], because: It knows none.}]\n---\n")
    assert run("generate", "drums", "--quiet") == 0
    output = capfd.readouterr()
    assert (output.out, output.err, caplog.text) == ("", "", "")
    assert run("generate", "drums") == 0
    assert caplog.text.count("The prompt says 'drums': It knows none.") == 1
    assert capfd.readouterr().out == "music.wav\n"


def test_names_of_files_keep_letters_of_any_script():
    assert slug("  Für Elise, 中文 & Пианино!! ") == "für-elise-中文-пианино"
    assert slug("a_b/../c\\d") == "a-b-c-d"
    assert slug("fu\N{COMBINING DIAERESIS}r") == "für"
    assert slug("♪♪") == "prompt"


def test_a_spectrogram_shows_every_take(run, tmp_path):
    pytest.importorskip("matplotlib")
    assert run("generate", "piano", "--num", 2, "--spectrogram", "out.png") == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "music-1.wav").is_file()


def test_a_spectrogram_without_matplotlib_says_how_to_get_it(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("generate", "piano", "--spectrogram", "out.png") == 1
    assert "pip install 'qamdt[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "music.wav").exists()


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_every_sampler_runs(run, tmp_path, sampler):
    assert run("generate", "piano", "--sampler", sampler, "--seconds", 0.1) == 0
    settings = json.loads((tmp_path / "music.json").read_text())["settings"]
    assert settings["eta"] == (1.0 if sampler == "paper" else 0.0)


def test_info_describes_the_model(run, tmp_path, capsys):
    assert run("info") == 0
    text = capsys.readouterr().out
    assert f"model         {tmp_path / 'pipe'}" in text
    assert "QAMDTTransformer2DModel, 0.0" in text
    assert "16000 Hz mono, 0.32 s" in text
    assert "mean 3.80, deviation 0.20; levels 2 to 5 begin at 3.40, 3.60, 4.00, 4.20" in text
    assert "DPMSolverMultistepScheduler, v_prediction" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "pass either a prompt or --prompts FILE"),
        (("piano", "--prompts", "p.txt"), "pass either a prompt or --prompts FILE"),
        (("piano", "--out-dir", "out"), "--out-dir goes with --prompts"),
        (("--prompts", "p.txt"), "--prompts needs --out-dir"),
        (("--prompts", "p.txt", "--out-dir", "out", "-o", "a.wav"), "takes neither -o nor --spectrogram"),
        (("--prompts", "missing.txt", "--out-dir", "out"), "--prompts must be a file, got 'missing.txt', which does"),
        (("--request", "missing.json"), "--request must be a file, got 'missing.json', which does not exist"),
        (("piano", "-o", "out.aiff"), "`-o` must end in one of .wav, .flac, .ogg, .opus, .mp3, got 'out.aiff'"),
        (("piano", "-o", "out.opus", "--sampling-rate", "44100"), "24000, 48000 Hz for a .opus file, got 44100; take"),
        (("piano", "--sampling-rate", "0"), "`sampling_rate` must be an integer of at least 8000 and at most 192000"),
        (("piano", "--loudness", "3"), "`loudness` must be a number at least -70 and at most 0, got 3.0"),
        (("piano", "--fade-ms", "-1"), "`fade_ms` must be a number at least 0, got -1.0"),
        (("piano", "-o", "no/out.wav"), "the folder of -o must exist, got 'no/out.wav'"),
        (("piano", "--init-audio", "no.wav"), "--init-audio must be a file, got 'no.wav', which does not exist"),
        (("piano", "--spectrogram", "no/out.png"), "the folder of --spectrogram must exist"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("piano", "--quality", "excellent"), "expected high, medium, low, unknown, a score from 1 to 5"),
        (("piano", "--quality", "0:2,4"), "got '0:2,4'"),
        (("piano", "--seconds", "long"), "argument --seconds: invalid float value: 'long'"),
        (("piano", "--sampler", "magic"), "invalid choice: 'magic'"),
        (("piano", "--nonsense"), "unrecognized arguments: --nonsense"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["generate", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quality", "9"), "`quality` must hold scores from 1 to 5, got 9."),
        (("--seconds", "-1"), "`seconds` must be a number greater than 0, got -1.0."),
        (("--seconds", "nan"), "`seconds` must be a number greater than 0, got nan."),
        (("--num", "0"), "`num` must be an integer of at least 1, got 0."),
        (("--seed", "-1"), "`seed` must be an integer of at least 0"),
        (("--guidance", "-1"), "`guidance` must be a number at least 0, got -1.0."),
        (("--request", "bad.json"), "'bad.json' holds no request: A request has no `lenght`"),
    ],
)
def test_requests_that_make_no_sense_are_refused(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('{"prompt": "piano", "lenght": 3}')
    assert main(["generate", "piano", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_only_the_model_can_refuse_is_a_wrong_argument_too(run, tmp_path, capsys):
    assert run("generate", "piano", "--seconds", 3600) == 2
    assert "at most 600, got 3600" in capsys.readouterr().err
    assert not (tmp_path / "music.wav").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"# nothing\n\n", "at least one prompt"), (b"\xff\xfe\x00", "must be a text file in UTF-8")],
)
def test_a_file_without_prompts_is_refused(run, tmp_path, capsys, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert run("generate", "--prompts", "prompts.txt", "--out-dir", "out") == 2
    assert message in capsys.readouterr().err


def test_a_missing_model_is_a_failure(run, capsys):
    assert run("generate", "piano", "--model", "no-such-folder") == 1
    assert "got 'no-such-folder'" in capsys.readouterr().err
    assert run("info", "--model", "no-such-folder") == 1
    assert "got 'no-such-folder'" in capsys.readouterr().err


def test_weights_cut_short_are_a_failure(run, pipe_dir, capsys):
    weights = pipe_dir / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run("generate", "piano") == 1
    assert "files are missing, damaged or cut short" in capsys.readouterr().err
    assert run("info") == 1
    assert "diffusion_pytorch_model.safetensors' is damaged or cut short" in capsys.readouterr().err


def test_a_full_disk_leaves_no_file_behind(run, tmp_path, monkeypatch, capsys):
    def disk_full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    before = sorted(tmp_path.iterdir())
    assert run("generate", "piano") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_convert_needs_a_checkpoint(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "missing.ckpt"), str(tmp_path / "out")]) == 2
    assert "which does not exist" in capsys.readouterr().err
    (tmp_path / "not.ckpt").write_bytes(b"no checkpoint")
    assert main(["convert", str(tmp_path / "not.ckpt"), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def test_qualities_of_the_command_line():
    assert parse_quality("high") == "high"
    assert parse_quality("unknown") is None
    assert parse_quality("3.5") == 3.5
    assert parse_quality("2,4.5") == [2.0, 4.5]
    assert parse_quality("0:2,5:4.5") == [(0.0, 2.0), (5.0, 4.5)]


def test_adapters_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_lora("runs/mine") == ("runs/mine", 1.0)
    assert parse_lora("runs/mine:0.5") == ("runs/mine", 0.5)
    assert parse_lora("owner/mine:-1") == ("owner/mine", -1.0)
    (tmp_path / "take:2").mkdir()
    assert parse_lora("take:2") == ("take:2", 1.0)


def test_parsing_imports_nothing_slow():
    code = "import sys, pipelines.cli as cli; cli.build_parser(); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
