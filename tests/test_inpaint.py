"""A pipeline that plays spans of a recording anew leaves what is around them, and can go on at both ends."""

import numpy as np
import pytest
import torch

from pipelines import QAMDTInpaintPipeline, QAMDTPipeline
from pipelines.spans import cross_fade, find_made
from tests.tiny_autoencoders import build_autoencoder_waveform


SECONDS = 0.64
RECORDING = 0.1 * torch.randn(10240, generator=torch.Generator().manual_seed(3))
FADE = round(0.04 * 16_000)


@pytest.fixture(params=["spectrograms", "waveforms"])
def components(request, build_components):
    if request.param == "spectrograms":
        return build_components()
    parts = build_components(sample_size=(8, 1), patch_size=(1, 1), in_channels=4)
    return parts | {"vae": build_autoencoder_waveform(4), "vocoder": None}


@pytest.fixture
def pipe(components):
    return quiet(QAMDTInpaintPipeline.from_pipe(QAMDTPipeline(**components)))


@pytest.fixture
def mel_pipe(build_components):
    return quiet(QAMDTInpaintPipeline(**build_components()))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fill(
    pipe, spans=((0.2, 0.4),), *, audio=RECORDING, sampling_rate=16_000, prompt="calm piano", seed=0, **arguments
):
    arguments = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(seed)} | arguments
    return pipe(prompt, audio=audio, sampling_rate=sampling_rate, spans=spans, **arguments).audios


def test_outside_the_spans_the_recording_stays_to_the_bit_but_for_the_cross_fade(pipe):
    audio = fill(pipe)[0]
    assert audio.shape == (10240,)
    np.testing.assert_array_equal(audio[: 3200 - FADE], RECORDING[: 3200 - FADE])
    np.testing.assert_array_equal(audio[6400 + FADE :], RECORDING[6400 + FADE :])
    assert np.abs(audio[3200:6400] - RECORDING[3200:6400].numpy()).max() > 0.01
    assert np.abs(fill(pipe, seed=1)[0] - audio)[3200:6400].max() > 1e-4


def test_otherwise_it_sounds_as_the_autoencoder_makes_it(pipe):
    latents = fill(pipe, output_type="latent", keep_original=False)
    is_kept = pipe.frames_without(find_made([(0.2, 0.4)], 10240, slice(0, 10240), 16_000), latents.shape[2])
    again = fill(pipe, output_type="latent", seed=1, prompt="fast drums")
    assert latents[:, :, is_kept].equal(again[:, :, is_kept])
    assert not torch.isclose(latents[:, :, ~is_kept], again[:, :, ~is_kept]).any(dim=1).all()
    spared = fill(pipe, output_type="latent", strength=0)
    assert spared[:, :, is_kept].equal(latents[:, :, is_kept])
    waveform = fill(pipe, keep_original=False)[0]
    assert np.abs(waveform - RECORDING.numpy())[:1600].max() > 1e-4


@pytest.mark.parametrize(("length", "start"), [(1.0, 0.0), (1.0, 0.36), (0.9, 0.1)])
def test_it_goes_on_where_the_recording_ends_and_leads_to_where_it_begins(mel_pipe, length, start):
    audio = fill(mel_pipe, (), audio_length_in_s=length, audio_start_in_s=start)[0]
    assert audio.shape == (round(length * 16_000),)
    first = round(start * 16_000)
    inner = slice(FADE, -FADE)
    np.testing.assert_array_equal(audio[first : first + 10240][inner], RECORDING[inner])
    assert np.abs(audio[: max(first - FADE, 0)]).max(initial=1) > 1e-4
    assert np.abs(audio[first + 10240 :]).max(initial=1) > 1e-4


def test_what_is_made_knows_what_is_around_it(mel_pipe):
    options = {"output_type": "latent", "guidance_scale": 1}
    made = slice(12, 18)
    other = RECORDING.clone()
    other[8000:] *= 0.1
    apart = (fill(mel_pipe, **options) - fill(mel_pipe, audio=other, **options)).abs().amax(dim=(0, 1, 3))
    assert apart[made].max() > 1e-4


def test_several_spans_in_any_order_are_one_mask():
    recording = slice(0, 1000)
    mask = find_made([(0.5, 0.7), (0.1, 0.2), (0.6, 0.8)], 1000, recording, 1000)
    assert mask.nonzero().flatten().tolist() == [*range(100, 200), *range(500, 800)]
    assert find_made([(0.9, 1.0)], 1000, slice(100, 1000), 1000).sum() == 200
    assert find_made([(0.5, 0.50001)], 1000, recording, 1000).sum() == 1


def test_the_cross_fade_keeps_the_power_and_jumps_nowhere():
    is_made = torch.zeros(8000, dtype=torch.bool)
    is_made[3000:5000] = True
    mixed = cross_fade(torch.zeros(1, 8000), torch.ones(1, 8000), is_made, 16_000)[0]
    other = cross_fade(torch.ones(1, 8000), torch.zeros(1, 8000), is_made, 16_000)[0]
    torch.testing.assert_close(mixed**2 + other**2, torch.ones(8000))
    assert (mixed[is_made] == 1).all()
    assert mixed.diff().abs().max() < 0.01
    assert (mixed[: 3000 - FADE] == 0).all()


def test_how_loud_a_recording_is_says_what_stays_of_it(mel_pipe):
    clicking = RECORDING.clone()
    clicking[4800] = 1.0
    quiet_span, loud_span = (fill(mel_pipe, audio=audio, output_type="latent") for audio in (RECORDING, clicking))
    torch.testing.assert_close(loud_span[:, :, :4], quiet_span[:, :, :4], atol=0.01, rtol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spans": [(0.5, 0.7)]}, "`spans` must hold .* 0 <= start < end <= 0.64, .* got \\(0.5, 0.7\\). A longer"),
        ({"spans": [(-0.1, 0.2)]}, "`spans` must hold .* got \\(-0.1, 0.2\\)"),
        ({"spans": [(0.3, 0.2)]}, "`spans` must hold .* got \\(0.3, 0.2\\)"),
        ({"spans": [(0.2, float("nan"))]}, "`spans` must hold .* got \\(0.2, nan\\)"),
        ({"spans": [0.2, 0.4]}, "`spans` must hold .* got 0.2"),
        ({"spans": "0.2"}, "`spans` must be a list of \\(start, end\\) in seconds, got '0.2'"),
        ({"spans": None}, "`spans` must be a list"),
        ({"spans": []}, "`spans` must say what to play anew, .* nothing is to be made"),
        ({"spans": [(0, 0.64)]}, "`spans` must leave some of the recording"),
        ({"audio_length_in_s": 0.5}, "`audio_length_in_s` must reach to the end of the recording, at 0.64 s, got 0.5"),
        ({"audio_length_in_s": 36_000}, "`audio_length_in_s` must be .* at most 600, got 36000"),
        ({"audio_start_in_s": -1}, "`audio_start_in_s` must be a number at least 0"),
        ({"strength": 1.5}, "`strength` must be .* got 1.5"),
        ({"audio": torch.zeros(10240)}, "`audio` must be audible outside the spans, got silence"),
        (
            {"audio": torch.nn.functional.one_hot(torch.tensor(4800), 10240).float()},
            "`audio` must be audible outside the spans, got silence",
        ),
    ],
)
def test_wrong_arguments_are_refused(mel_pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        fill(mel_pipe, **arguments)
