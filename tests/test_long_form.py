"""Clips longer than the network was built for: windows that cover them, loops without a seam, streams, prompts over time."""

import numpy as np
import pytest
import torch

from pipelines import QAMDTPipeline
from pipelines.sections import Sections, predict_in_sections, shares_of_sections
from pipelines.windows import place_windows, predict_in_windows
from qamdt.conditions import Conditions
from qamdt.music import NUM_MUSIC_FEATURES


SCHEDULE = [(0, "calm piano"), (0.5, "fast drums")]


@pytest.fixture
def pipe(build_components):
    return quiet(QAMDTPipeline(**build_components()))


@pytest.fixture
def music_pipe(build_components):
    return quiet(QAMDTPipeline(**build_components(num_music_features=NUM_MUSIC_FEATURES)))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, prompt="calm piano", *, seed=0, **arguments):
    arguments = {"num_inference_steps": 2, "audio_length_in_s": 1.0, "guidance_scale": 1} | arguments
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **arguments).audios


def told(num_frames, value=1.0):
    curve = value * torch.arange(num_frames)[None].float()
    return Conditions(texts=torch.zeros(1, 2, 8), mask=torch.ones(1, 2), curves={"quality": curve})


@pytest.mark.parametrize("num_frames", [128, 129, 160, 375, 2250])
@pytest.mark.parametrize("is_loop", [False, True])
def test_windows_cover_every_frame_and_share_a_quarter_with_the_next(num_frames, is_loop):
    windows = place_windows(num_frames, 128, is_loop=is_loop)
    assert windows.shape[1] == 128
    assert set(windows.flatten().tolist()) == set(range(num_frames))
    ends = zip(windows.tolist(), windows.roll(-1, 0).tolist(), strict=True)
    pairs = list(ends) if is_loop else list(ends)[:-1]
    assert all(len(set(one) & set(following)) >= 32 for one, following in pairs)
    assert len(windows) <= num_frames / 96 + 2


def test_windows_of_a_network_that_looks_at_single_frames_equal_one_pass():
    latents = torch.randn(1, 3, 300, 2)
    conditions = told(300)

    def predict(model_input, timestep, branches, window=0):
        return [model_input * 2 + branch.curves["quality"][:, None, :, None] for branch in branches]

    for is_loop in (False, True):
        in_windows = predict_in_windows(predict, place_windows(300, 128, is_loop=is_loop))
        for one, expected in zip(
            in_windows(latents, 0, [conditions, told(300, 3.0)]),
            predict(latents, 0, [conditions, told(300, 3.0)]),
            strict=True,
        ):
            torch.testing.assert_close(one, expected)


def test_long_clips_run_the_network_on_windows_alone(pipe, monkeypatch):
    lengths = []
    forward = pipe.transformer.forward
    monkeypatch.setattr(
        pipe.transformer,
        "forward",
        lambda *a, **k: lengths.append((k["hidden_states"].shape[2], k["frame_quality"].shape[1])) or forward(*a, **k),
    )
    assert generate(pipe, num_inference_steps=1).shape == (1, 16_000)
    assert set(lengths) == {(16, 16)}
    assert len(lengths) == len(place_windows(50, 16))


def test_windows_know_their_neighbours(pipe):
    noise = torch.randn(1, 4, 50, 4, generator=torch.Generator().manual_seed(0))
    other = noise.clone()
    other[:, :, 40:] = 0
    first, second = (generate(pipe, latents=latents, output_type="latent") for latents in (noise, other))
    changed = (first - second).abs().amax(dim=(0, 1, 3)) > 1e-7
    assert changed[40:].all()
    assert changed[30:40].any()
    assert not changed[:8].any()


def test_beats_and_chords_run_through(music_pipe, monkeypatch):
    seen = []
    forward = music_pipe.transformer.forward
    monkeypatch.setattr(music_pipe.transformer, "forward", lambda *a, **k: seen.append(k["music"]) or forward(*a, **k))
    generate(music_pipe, bpm=120, num_inference_steps=1)
    phase = torch.atan2(*[torch.cat([seen[0][0, :, row], seen[-1][0, :, row]]) for row in (0, 1)])
    frames = torch.cat([torch.arange(16), torch.arange(34, 50)])
    expected = 2 * torch.pi * ((frames + 0.5) * 0.02).clamp(max=1.0) * 2
    torch.testing.assert_close(phase.sin(), expected.sin(), atol=1e-5, rtol=0)


def test_a_loop_goes_on_with_its_beginning(pipe):
    latents = generate(pipe, loop=True, output_type="latent")
    rolled = torch.randn(1, 4, 50, 4, generator=torch.Generator().manual_seed(0)).roll(20, dims=2)
    turned = generate(pipe, loop=True, latents=rolled, output_type="latent")
    torch.testing.assert_close(turned.roll(-20, dims=2), latents, atol=1e-4, rtol=1e-3)  # a ring has no beginning
    assert not torch.allclose(generate(pipe, output_type="latent"), latents)
    audio = pipe.decode(latents, is_loop=True)
    turned = pipe.decode(latents.roll(10, dims=2), is_loop=True)
    assert (turned.roll(-3200, dims=1) - audio).norm() < 0.01 * audio.norm()
    assert generate(pipe, loop=True, audio_length_in_s=0.33).shape == (1, 16 * 320)


def test_a_loop_lasts_whole_bars(music_pipe):
    def make(**arguments):
        arguments |= {"num_inference_steps": 1, "guidance_scale": 1, "loop": True, "output_type": "latent"}
        return music_pipe("calm piano", generator=torch.Generator().manual_seed(0), **arguments)

    output = make(bpm=[121], time_signature="3/4", audio_length_in_s=1.8)
    seconds = output.audios.shape[2] * music_pipe._latent_frame_in_s
    assert seconds == pytest.approx(3 * 60 / 121, abs=0.02)
    assert seconds * output.music[0].tempo_bpm / 60 == pytest.approx(3)
    planned = make(audio_length_in_s=2.0)
    assert planned.audios.shape[2] == 100
    num_bars = planned.music[0].tempo_bpm * 2 / 60 / 4
    assert num_bars == pytest.approx(round(num_bars))


def test_a_stream_yields_as_much_as_is_asked_for_and_the_first_of_it_early(pipe, monkeypatch):
    calls = []
    forward = pipe.transformer.forward
    monkeypatch.setattr(pipe.transformer, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    monkeypatch.setattr("pipelines.streaming.DECODING_CONTEXT", 4)
    stream = pipe.stream(
        "calm piano",
        audio_length_in_s=1.0,
        num_inference_steps=2,
        guidance_scale=1,
        generator=torch.Generator().manual_seed(0),
    )
    first = next(stream)
    assert len(calls) == 2
    assert first.shape == (1, 12 * 320)
    audio = np.concatenate([first, *stream], axis=1)
    assert audio.shape == (1, 16_000)
    assert np.isfinite(audio).all()
    again = pipe.stream(
        "calm piano",
        audio_length_in_s=1.0,
        num_inference_steps=2,
        guidance_scale=1,
        generator=torch.Generator().manual_seed(0),
    )
    np.testing.assert_array_equal(np.concatenate(list(again), axis=1), audio)
    with pytest.raises(ValueError, match="at most 600, got 36000"):
        pipe.stream("calm piano", audio_length_in_s=36_000)


def test_what_is_streamed_is_what_its_latents_decode_to(pipe):
    pieces = list(torch.randn(1, 4, 60, 4, generator=torch.Generator().manual_seed(0)).split([16, 12, 12, 20], dim=2))
    pipe.transformer.register_to_config(sample_size=(100, 4))
    whole = pipe.decode(torch.cat(pieces, dim=2))
    audio = torch.cat(list(pipe._decode_in_order(iter(pieces))), dim=1)
    torch.testing.assert_close(audio, whole, atol=0.02, rtol=0.05)


def test_windows_of_a_stream_begin_with_the_end_of_the_one_before(pipe, monkeypatch):
    made = []
    denoise = pipe.denoise

    def watch(*arguments, **options):
        made.append(denoise(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(pipe, "denoise", watch)
    list(pipe.stream("calm piano", audio_length_in_s=1.0, num_inference_steps=2, guidance_scale=1))
    for one, following in zip(made, made[1:], strict=False):
        assert following[:, :, :4].equal(one[:, :, -4:])
    assert len(made) == 4


def test_sections_cross_over_a_bar_and_count_one_together():
    times = np.linspace(0, 40, 401)
    shares = shares_of_sections([0, 20, 30], times, crossing_in_s=2.0)
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    assert (shares >= 0).all()
    assert shares[0, times < 19].min() == 1
    assert shares[1, times == 20] == 0.5
    assert shares[1, (times > 21) & (times < 29)].min() == 1
    assert shares[2, times > 31].min() == 1


def test_outputs_of_sections_are_mixed_by_their_shares_and_idle_sections_cost_nothing():
    asked = []

    def predict(model_input, timestep, branches):
        asked.append(len(branches))
        return [torch.full_like(model_input, float(branch.texts.mean())) for branch in branches]

    parts = tuple(Conditions(texts=torch.full((1, 2, 8), value), mask=torch.ones(1, 2)) for value in (1.0, 3.0))
    shares = torch.tensor([[[1.0, 1.0, 0.5, 0.0], [0.0, 0.0, 0.5, 1.0]]])
    sections = Sections(parts, shares)
    plain = Conditions(texts=torch.full((1, 2, 8), 7.0), mask=torch.ones(1, 2))
    mixed, other = predict_in_sections(predict)(torch.zeros(1, 2, 4, 2), 0, [sections, plain])
    assert mixed[0, 0, :, 0].tolist() == [1, 1, 2, 3]
    assert (other == 7).all()
    predict_in_sections(predict)(torch.zeros(1, 2, 2, 2), 0, [sections.at_frames(torch.tensor([0, 1])), plain])
    assert asked == [3, 2]


@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 3.5}, {"guidance_scale": 2, "quality_guidance_scale": 2}])
def test_prompts_take_turns(pipe, guidance):
    options = {"output_type": "latent", "audio_length_in_s": 2.0, "num_inference_steps": 1} | guidance
    both = generate(pipe, [(0, "calm piano"), (1.0, "fast drums")], **options)
    first, second = (generate(pipe, text, **options) for text in ("calm piano", "fast drums"))
    apart = (first - second).abs().amax(dim=(0, 1, 3))
    assert (apart > 1e-6).all()
    beginning, end = slice(0, 2), slice(-2, None)
    assert (both - first).abs()[:, :, beginning].max() < apart[beginning].max()
    assert (both - second).abs()[:, :, end].max() < apart[end].max()


def test_each_part_of_a_long_clip_is_told_its_own_quality(pipe, monkeypatch):
    told = []
    monkeypatch.setattr("pipelines.conditioning.CROSSING_IN_S", 0.1)  # a clip of a second has little room for more
    encode = pipe.encode_prompt
    monkeypatch.setattr(pipe, "encode_prompt", lambda texts: told.append(texts) or encode(texts))
    generate(pipe, quality=[(0, 3.0), (1, 4.6)], num_inference_steps=1)
    assert [texts[0].split()[0] for texts in told] == ["low", "medium", "high", "high"]
    told.clear()
    generate(pipe, quality=[(0, 3.0), (0.3, 4.6)], audio_length_in_s=0.32, num_inference_steps=1)
    assert told == [["medium quality, calm piano"]]
    told.clear()
    generate(pipe, quality="low", num_inference_steps=1, guidance_scale=2)
    assert told == [["low quality, calm piano"], [""]]


def test_a_batch_with_prompts_over_time_equals_single_calls(pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    options = {"num_inference_steps": 2, "audio_length_in_s": 1.0}
    together = pipe(["piano", SCHEDULE], generator=generators, **options).audios
    for number, prompt in enumerate(["piano", SCHEDULE]):
        alone = pipe(prompt, generator=torch.Generator().manual_seed(number), **options).audios
        np.testing.assert_allclose(together[number : number + 1], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([(0, "piano"), (0.5, "drums"), (0.2, "guitar")], "`prompt` must have rising seconds that begin at 0"),
        ([(0.1, "piano")], "`prompt` must have rising seconds that begin at 0, got \\[0.1\\]"),
        ([(0, "piano"), (float("nan"), "drums")], "`prompt` must have rising seconds"),
        ([(0, "piano"), (1.0, "drums")], "`prompt` must begin within the clip of 1 s, got one at 1 s"),
        ([(0, "piano"), (0.5, None)], "`prompt` must be a text or \\(second, text\\) tuples"),
        ([(0, "piano", 1)], "`prompt` must be a text or \\(second, text\\) tuples"),
        ([SCHEDULE, 3], "`prompt` must be a text or a list of at least one text, got 3"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(pipe, prompt, message):
    with pytest.raises(ValueError, match=message):
        generate(pipe, prompt)


def test_a_callback_cannot_replace_texts_that_change(pipe):
    with pytest.raises(ValueError, match="must not hold 'prompt_embeds' where prompts change"):
        generate(
            pipe, SCHEDULE, callback_on_step_end=dict, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]
        )
