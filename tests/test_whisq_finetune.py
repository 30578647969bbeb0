"""Encoders that learn with the heads: they change, are saved beside them, and score as they were trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from benchmarks.whisq_phase1 import write_phase1
from qamdt.settings import build, override
from tests.tiny_training import StopAfter
from whisq.ablation import VARIANTS, run_variants
from whisq.audio import PEAK
from whisq.encoders import fingerprint, load_audio_encoder, load_text_encoder
from whisq.evaluate import load_models, predict_all
from whisq.modeling_whisq import WhisQModel
from whisq.scorer import WhisQScorer
from whisq.train import main, train
from whisq.training.config import WhisQConfig
from whisq.training.finetuning import start_finetuning
from whisq.training.objective import WhisQObjective, build_optimizer
from whisq.training.preparation import prepare


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory, scorer_dir):
    """A run on about half a second of sound a clip, with the tiny encoders of `scorer_dir`."""
    folder = tmp_path_factory.mktemp("finetune")
    encoders = {"audio": str(scorer_dir.parent / "clap"), "text": str(scorer_dir.parent / "text")}
    write_phase1(folder / "phase1", kind="quality", num_systems=3, clips_per_system=10, seconds=0.5)
    for path in folder.glob("phase1/wav/*.wav"):  # the scorer brings all that it hears to this peak
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples * PEAK / np.abs(samples).max(), rate, subtype="FLOAT")
    return build(
        WhisQConfig,
        {
            "data": {
                "musiceval": str(folder / "phase1"),
                "features": str(folder / "features"),
                "min_window_in_s": 0.2,
            },
            "encoders": {**encoders, "finetune": "both"},
            "model": {"num_attention_heads": 2, "head_hidden_sizes": [16]},
            "optim": {"learning_rate": 0.003, "encoder_learning_rate": 0.001},
            "run": {"output_dir": str(folder / "run"), "seeds": [0], "max_epochs": 2, "batch_size": 6},
        },
    )


@pytest.fixture(scope="module")
def music(config, accelerator):
    return prepare(config, accelerator)


@pytest.fixture(scope="module")
def trained_dir(config, music, accelerator):
    """The model of an unbroken run that fine-tuned both encoders."""
    train(config, music, accelerator, StopAfter())
    return Path(config.run.output_dir) / "seed-0" / "model"


def test_gradients_reach_both_encoders_at_a_rate_of_their_own(config, music):
    encoders = start_finetuning(config.encoders)
    assert encoders.training
    model = WhisQModel(**config.model, **music.model_arguments | encoders.names)
    objective = WhisQObjective(model, encoders, config.loss, config.data.window_loss)
    batch = music.cached.collate(music.splits["train"][:4], seed="a", hears=True, reads=True)
    assert batch.audio_hidden_states is batch.text_hidden_states is None
    objective(batch)["loss"].backward()
    for encoder, first in ((encoders.audio, "stages.0.conv.weight"), (encoders.text, "embeddings.word")):
        (gradient,) = [p.grad for name, p in encoder.named_parameters() if first in name]
        assert gradient.abs().max() > 0
    rates = {}
    for group in build_optimizer(objective, config.optim).param_groups:
        rates |= dict.fromkeys(group["params"], group["lr"])
    assert {rates[p] for p in model.parameters()} == {0.003}
    assert {rates[p] for p in encoders.parameters()} == {0.001}


def test_sound_and_prompts_give_the_tokens_of_the_cache(config, music):
    clips = music.splits["dev"]
    cached = music.cached.collate(clips, seed="a")
    raw = music.cached.collate(clips, seed="a", hears=True, reads=True)
    with torch.inference_mode():
        encoded = start_finetuning(config.encoders).eval()(raw)
    for name in ("audio", "text"):
        mask = getattr(cached, f"{name}_mask")
        assert torch.equal(mask, getattr(encoded, f"{name}_mask"))
        states = [getattr(batch, f"{name}_hidden_states")[mask] for batch in (cached, encoded)]
        torch.testing.assert_close(*states, atol=5e-3, rtol=5e-3)  # the cache holds 16 bits
    assert torch.equal(cached.window_mask, raw.window_mask)


def test_the_scorer_loads_what_was_trained_and_scores_as_the_model_predicts(config, music, trained_dir):
    (predictions,) = predict_all(load_models(config), music, music.splits["test"], config)
    scorer = WhisQScorer.from_pretrained(trained_dir)
    clips = music.splits["test"]
    sounds = [soundfile.read(clip.path, dtype="float32")[0] for clip in clips]
    scores = scorer.score(sounds, 16_000, [clip.prompt for clip in clips])
    for name in ("overall_quality", "text_alignment"):
        np.testing.assert_allclose([getattr(s, name) for s in scores], getattr(predictions, name), atol=1e-4)

    # The encoders are others than those that training began with, and those matter.
    assert json.loads((trained_dir / "config.json").read_text())["audio_encoder"] == "./audio_encoder"
    before = (load_audio_encoder(config.encoders.audio), load_text_encoder(config.encoders.text))
    for encoder, changed in zip(before, (scorer.audio_encoder, scorer.text_encoder), strict=True):
        assert fingerprint(encoder) != fingerprint(changed)
    unchanged = WhisQScorer(WhisQModel.from_pretrained(trained_dir), *before).score(sounds[0], 16_000, clips[0].prompt)
    assert abs(unchanged[0].overall_quality - scores[0].overall_quality) > 1e-4


def test_a_resumed_run_equals_a_straight_one_exactly(config, music, accelerator, trained_dir, tmp_path):
    resumed = override(config, {"run.output_dir": str(tmp_path)})
    for num_steps in (1, 2):  # within the first pass, within the second
        assert train(resumed, music, accelerator, StopAfter(num_steps)) is None
        torch.manual_seed(12345)
    train(resumed, music, accelerator, StopAfter())
    for name in ("results.json", "seed-0/log.jsonl"):
        assert (tmp_path / name).read_bytes() == (trained_dir.parents[1] / name).read_bytes()
    files = sorted(path.relative_to(trained_dir) for path in trained_dir.rglob("*.safetensors"))
    assert [str(path.parent) for path in files] == ["audio_encoder", ".", "text_encoder"]
    for path in files:
        assert (tmp_path / "seed-0" / "model" / path).read_bytes() == (trained_dir / path).read_bytes()


def test_one_encoder_learns_alone_and_heads_only_leave_both_as_they_are(config, music, accelerator, tmp_path):
    for finetune, folders in (("none", []), ("audio", ["audio_encoder"]), ("text", ["text_encoder"])):
        folder = tmp_path / finetune
        changes = {"encoders.finetune": finetune, "run.output_dir": str(folder), "run.max_epochs": 1}
        train(override(config, changes), music, accelerator, StopAfter())
        saved = folder / "seed-0" / "model"
        assert [path.name for path in sorted(saved.iterdir()) if path.is_dir()] == folders
        scorer = WhisQScorer.from_pretrained(saved)
        is_audio_unchanged = fingerprint(scorer.audio_encoder) == fingerprint(
            load_audio_encoder(config.encoders.audio)
        )
        is_text_unchanged = fingerprint(scorer.text_encoder) == fingerprint(load_text_encoder(config.encoders.text))
        assert (is_audio_unchanged, is_text_unchanged) == (finetune != "audio", finetune != "text")


def test_the_ablation_has_a_row_of_fine_tuned_encoders(config, music, accelerator, tmp_path):
    frozen = override(config, {"encoders.finetune": "none", "run.output_dir": str(tmp_path), "run.max_epochs": 1})
    variants = {"fine-tuned encoders": VARIANTS["fine-tuned encoders"]}
    rows = run_variants(frozen, variants, music, accelerator, StopAfter(), "test")
    assert rows["fine-tuned encoders"]["utterance"]["overall_quality"]["mse"]["mean"] > 0
    weights = tmp_path / "variants" / "fine-tuned-encoders" / "seed-0" / "model" / "audio_encoder"
    assert load_file(next(weights.glob("*.safetensors")))


def test_what_may_be_fine_tuned_is_told(capsys):
    assert main(["--config", "mini", "encoders.finetune=drums"]) == 2
    message = "`encoders.finetune` must be one of ['none', 'audio', 'text', 'both'], got 'drums'"
    assert message in capsys.readouterr().err
