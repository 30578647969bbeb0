"""Tempo, key and chords in a call: they reach the network, each waveform has its own, and what is played is returned."""

import numpy as np
import pytest
import torch

from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.music import CHORD, KEY, NUM_MUSIC_FEATURES, RHYTHM, Music, music_curve


@pytest.fixture
def pipe(build_components):
    pipe = QAMDTPipeline(**build_components(num_music_features=NUM_MUSIC_FEATURES))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, prompt="calm piano", *, seed=0, **arguments):
    arguments = {"num_inference_steps": 2, "audio_length_in_s": 0.5, **arguments}
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **arguments)


@pytest.fixture
def told(pipe, monkeypatch):
    """What the network is told of music in each call."""
    calls = []
    forward = pipe.transformer.forward
    monkeypatch.setattr(pipe.transformer, "forward", lambda *a, **k: calls.append(k.get("music")) or forward(*a, **k))
    return calls


def test_arguments_reach_the_network_at_every_frame_and_the_unguided_branch_knows_nothing(pipe, told):
    output = generate(pipe, bpm=120, key="A minor", chords="Am F", time_signature="3/4")
    wanted, avoided = told[0].chunk(2)
    frame_in_s = pipe._latent_frame_in_s
    times = np.minimum((np.arange(wanted.shape[1]) + 0.5) * frame_in_s, 0.5)
    expected = music_curve(output.music[0], times, frame_in_s)
    np.testing.assert_allclose(wanted[0].numpy(), expected, atol=1e-6)
    assert all(expected[:, rows].any() for rows in (RHYTHM, KEY, CHORD))
    assert not avoided.any()
    assert output.music == [
        Music(tempo_bpm=120, first_beat_in_s=0.0, time_signature="3/4", key="A minor", chords=((0.0, "Am"),))
    ]


def test_it_changes_the_sound(pipe):
    plain = generate(pipe, bpm=90, key="C major", chords="C F").audios
    assert not np.allclose(plain, generate(pipe, bpm=100, key="C major", chords="C F").audios)
    assert not np.allclose(plain, generate(pipe, bpm=90, key="C major", chords="Am F").audios)
    np.testing.assert_array_equal(plain, generate(pipe, bpm=90, key="C major", chords="C F").audios)


def test_every_waveform_gets_a_plan_of_its_own_that_its_seed_repeats(pipe):
    first, second = (generate(pipe, num_waveforms_per_prompt=3, seed=seed).music for seed in (5, 5))
    assert first == second
    assert len({(music.tempo_bpm, music.key) for music in first}) == 3
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    pair = pipe(["a", "b"], generator=generators, num_inference_steps=1, audio_length_in_s=0.5).music
    alone = pipe("b", generator=[torch.Generator().manual_seed(6)], num_inference_steps=1, audio_length_in_s=0.5).music
    assert pair[1:] == alone


def test_lists_are_one_for_each_prompt(pipe):
    music = generate(pipe, ["a", "b in D minor"], bpm=[90, None], key=[None, "C major"], chords=["C", "F G"]).music
    assert [clip.chords[0][1] for clip in music] == ["C", "F"]
    assert music[0].tempo_bpm == 90
    assert music[1].key == "C major"


def test_without_a_plan_the_network_is_told_what_was_said_alone(pipe, told):
    generate(pipe, "at 100 bpm", plan_music=False)
    wanted = told[0].chunk(2)[0]
    assert wanted[..., RHYTHM].any()
    assert not wanted[..., KEY].any()
    assert not wanted[..., CHORD].any()


def test_it_is_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = QAMDTPipeline.from_pretrained(tmp_path)
    np.testing.assert_array_equal(generate(loaded, bpm=90).audios, generate(pipe, bpm=90).audios)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bpm": 500}, "`bpm` must be a number from 40 to 220"),
        ({"key": "H major"}, "`key` must be a tonic and a mode"),
        ({"chords": "Am Hm"}, "`chords` must hold symbols"),
        ({"time_signature": "7/8"}, "`time_signature` must be one of"),
        ({"bpm": [90, 100]}, "`bpm` must be one value for all prompts or a list with one for each of the 1 prompts"),
    ],
)
def test_what_makes_no_sense_is_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(pipe, **arguments)


@pytest.mark.parametrize("argument", [{"bpm": 90}, {"key": "C"}, {"chords": "C"}, {"time_signature": "3/4"}])
def test_a_model_that_knows_no_music_refuses_it_by_name(build_components, argument):
    pipe = QAMDTPipeline(**build_components())
    with pytest.raises(ValueError, match=f"`{next(iter(argument))}` was given, but this model does not know it"):
        generate(pipe, **argument)
    assert generate(pipe).music is None
