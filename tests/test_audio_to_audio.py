"""A pipeline that begins with a recording keeps as much of it as `strength` leaves, whatever rate and shape it has."""

import diffusers
import numpy as np
import pytest
import soundfile
import torch

from pipelines import QAMDTAudioToAudioPipeline, QAMDTPipeline
from qamdt.audio import normalize_waveform
from tests.tiny_autoencoders import build_autoencoder_waveform


SECONDS = 0.4
RECORDING = 0.3 * torch.randn(6400, generator=torch.Generator().manual_seed(3)).clamp(-3, 3)


@pytest.fixture(params=["spectrograms", "waveforms"])
def components(request, build_components):
    if request.param == "spectrograms":
        return build_components()
    parts = build_components(sample_size=(8, 1), patch_size=(1, 1), in_channels=4)
    return parts | {"vae": build_autoencoder_waveform(4), "vocoder": None}


@pytest.fixture
def text_pipe(components):
    return quiet(QAMDTPipeline(**components))


@pytest.fixture
def pipe(text_pipe):
    return quiet(QAMDTAudioToAudioPipeline.from_pipe(text_pipe))


@pytest.fixture
def mel_pipe(build_components):
    return quiet(QAMDTAudioToAudioPipeline(**build_components()))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def change(pipe, strength=0.5, *, audio=RECORDING, sampling_rate=16_000, seed=0, prompt="calm piano", **arguments):
    arguments = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(seed)} | arguments
    return pipe(prompt, audio=audio, sampling_rate=sampling_rate, strength=strength, **arguments).audios


def reconstruct(pipe, recording=RECORDING):
    latents = pipe.encode(normalize_waveform(recording)[None], pipe.num_latent_frames(len(recording) / 16_000))
    centred = recording - recording.mean()
    return pipe.decode(latents)[:, : len(recording)] * centred.abs().max() / 0.5


def test_strength_0_returns_what_the_autoencoder_makes_of_the_recording(pipe):
    audios = change(pipe, 0)
    assert audios.shape == (1, 6400)
    np.testing.assert_allclose(audios, reconstruct(pipe).numpy(), atol=1e-5)
    np.testing.assert_array_equal(audios, change(pipe, 0, prompt="drums", seed=1))


def test_strength_1_equals_text_to_music_with_that_noise(pipe, text_pipe):
    expected = text_pipe(
        "calm piano", num_inference_steps=4, audio_length_in_s=SECONDS, generator=torch.Generator().manual_seed(0)
    )
    np.testing.assert_array_equal(change(pipe, 1), expected.audios)


def test_the_more_strength_the_further_from_the_recording(mel_pipe):
    options = {"num_inference_steps": 10, "guidance_scale": 1, "output_type": "latent"}
    latents = [change(mel_pipe, strength, **options) for strength in (0, 0.1, 0.3, 0.6, 0.9)]
    distances = [float((later - latents[0]).norm()) for later in latents]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert change(mel_pipe, 0.01, **options).equal(latents[1])  # a little is at least a step


@pytest.mark.parametrize(
    "name", ["DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "UniPCMultistep", "flow"]
)
def test_any_sampler_starts_in_the_middle(mel_pipe, name):
    if name == "flow":
        flow = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}
        mel_pipe = QAMDTAudioToAudioPipeline(**mel_pipe.components | flow)
        mel_pipe.set_progress_bar_config(disable=True)
    else:
        mel_pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(mel_pipe.scheduler.config)
    options = {"output_type": "latent", "num_inference_steps": 10, "guidance_scale": 1}
    start, near, far = (change(mel_pipe, strength, **options) for strength in (0, 0.1, 0.4))
    assert far.isfinite().all()
    assert 0 < (near - start).norm() < (far - start).norm()


def test_a_recording_of_any_rate_and_channels_is_brought_to_the_models_and_said(mel_pipe, tmp_path, caplog):
    stereo = torch.stack([RECORDING, 0.5 * RECORDING])
    expected = change(mel_pipe, audio=stereo.mean(dim=0))
    diffusers.utils.logging.enable_propagation()
    np.testing.assert_allclose(change(mel_pipe, audio=stereo[None]), expected, atol=1e-6)
    assert "`audio` of 16000 Hz, 2 channels, is brought to 16000 Hz mono" in caplog.text
    caplog.clear()
    soundfile.write(tmp_path / "a.wav", stereo.T.numpy(), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(change(mel_pipe, audio=tmp_path / "a.wav", sampling_rate=None), expected, atol=1e-6)
    assert "2 channels" in caplog.text
    caplog.clear()
    change(mel_pipe)
    assert "is brought" not in caplog.text
    assert change(mel_pipe, audio=RECORDING.numpy(), sampling_rate=44_100).shape == (1, round(6400 * 16_000 / 44_100))
    assert "`audio` of 44100 Hz, mono" in caplog.text
    diffusers.utils.logging.disable_propagation()


def test_the_result_is_as_loud_as_the_recording(mel_pipe):
    loud, soft = change(mel_pipe), change(mel_pipe, audio=0.01 * RECORDING)
    np.testing.assert_allclose(0.01 * loud, soft, rtol=1e-3, atol=1e-6)


def test_each_prompt_has_its_recording_or_all_have_one(mel_pipe):
    pair = torch.stack([RECORDING, RECORDING.flip(0)])
    arguments = {"prompt": ["piano", "drums"], "num_waveforms_per_prompt": 2}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1, 0, 1)]
    audios = change(mel_pipe, audio=pair, generator=generators, **arguments)
    np.testing.assert_allclose(audios[1:2], change(mel_pipe, prompt="piano", seed=1), atol=1e-5)
    alone = change(mel_pipe, audio=pair[1], prompt="drums")
    np.testing.assert_allclose(audios[2:3], alone, atol=1e-5)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1, 0, 1)]
    shared = change(mel_pipe, generator=generators, **arguments)
    np.testing.assert_allclose(shared[3:], change(mel_pipe, prompt="drums", seed=1), atol=1e-5)


def test_guidance_is_left_out_in_the_part_of_the_schedule_that_it_is_not_for(mel_pipe):
    options = {"num_inference_steps": 8, "output_type": "latent"}
    unguided = change(mel_pipe, 0.5, guidance_scale=1, **options)
    assert change(mel_pipe, 0.5, guidance_interval=(0, 0.5), **options).equal(unguided)
    assert not change(mel_pipe, 0.5, guidance_interval=(0, 0.6), **options).equal(unguided)


def test_from_pipe_shares_the_weights_and_keeps_precision_and_settings(text_pipe):
    text_pipe.transformer.to(torch.bfloat16)
    made = QAMDTAudioToAudioPipeline.from_pipe(text_pipe, max_audio_length_in_s=2.0)
    assert made.transformer is text_pipe.transformer
    assert made.transformer.dtype == torch.bfloat16
    assert made.vae.dtype == torch.float32
    assert made.quality_stats == text_pipe.quality_stats
    assert made.config.max_audio_length_in_s == 2.0
    assert QAMDTPipeline.from_pipe(made, dtype=torch.float32).transformer.dtype == torch.float32
    with pytest.raises(ValueError, match="`from_pipe` takes `dtype` and .* got \\['speed'\\]"):
        QAMDTAudioToAudioPipeline.from_pipe(text_pipe, speed=2)


def test_it_is_saved_and_loaded_and_opens_what_others_saved(mel_pipe, tmp_path):
    mel_pipe.save_pretrained(tmp_path)
    expected = change(mel_pipe)
    np.testing.assert_array_equal(change(quiet(QAMDTAudioToAudioPipeline.from_pretrained(tmp_path))), expected)
    text_pipe = quiet(QAMDTPipeline.from_pretrained(tmp_path))
    np.testing.assert_array_equal(change(QAMDTAudioToAudioPipeline.from_pipe(text_pipe)), expected)


def test_callbacks_see_the_steps_that_are_run(mel_pipe):
    steps = []

    def watch(pipeline, step, timestep, tensors):
        steps.append(step)
        return {}

    change(mel_pipe, 0.5, num_inference_steps=8, callback_on_step_end=watch)
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 1.5}, "`strength` must be a number at least 0 and at most 1, got 1.5"),
        ({"strength": None}, "`strength` must be a number"),
        ({"prompt": None}, "Pass either `prompt` or `prompt_embeds`, got neither"),
        ({"audio": torch.zeros(6400)}, "`audio` must be audible, got silence"),
        ({"audio": torch.ones(6400)}, "`audio` must be audible, got silence"),
        ({"audio": torch.ones(1)}, "`audio` must last from 0.1 to 600 s, got 6.25e-05 s"),
        ({"audio": torch.ones(0)}, "`audio` must have the shape .* got \\(0,\\)"),
        ({"audio": torch.ones(1, 1, 1, 6400)}, "`audio` must have the shape .* got \\(1, 1, 1, 6400\\)"),
        ({"audio": torch.full((6400,), torch.nan)}, "`audio` must be finite, got NaN or infinity"),
        (
            {"audio": torch.ones(6400, dtype=torch.int16)},
            "`audio` must hold samples between -1 and 1, got torch.int16",
        ),
        ({"audio": [0.1, 0.2]}, "`audio` must be a sound file, an array or a tensor, got list"),
        ({"audio": torch.randn(2, 6400)}, "one for each of the 1 prompts, got 2; one of several channels"),
        ({"audio": torch.randn(10 * 3600), "sampling_rate": 1}, "`audio` must last from 0.1 to 600 s, got 36000 s"),
        ({"sampling_rate": None}, "`sampling_rate` must say how many samples of `audio` are a second, got None"),
        ({"sampling_rate": 44.1}, "`sampling_rate` must say .* got 44.1"),
        ({"audio": "a.wav"}, "`sampling_rate` goes with samples; a file says its own. Got 16000"),
    ],
)
def test_wrong_arguments_are_refused(mel_pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        change(mel_pipe, **arguments)


def test_files_that_are_none_or_too_long_are_refused(mel_pipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="a.wav"):
        change(mel_pipe, audio=tmp_path / "a.wav", sampling_rate=None)
    (tmp_path / "a.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="`path` must be a readable wav"):
        change(mel_pipe, audio=str(tmp_path / "a.wav"), sampling_rate=None)
    soundfile.write(tmp_path / "long.flac", np.zeros(700 * 1000), 1000)
    with pytest.raises(ValueError, match="`audio` must last from 0.1 to 600 s, got 700 s"):
        change(mel_pipe, audio=tmp_path / "long.flac", sampling_rate=None)
