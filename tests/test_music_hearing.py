"""The beat of a recording is heard, and what is played around it keeps that beat."""

import numpy as np
import pytest
import torch

from pipelines import QAMDTAudioToAudioPipeline, QAMDTInpaintPipeline
from pipelines.music_hearing import hear_music
from qamdt.music import NUM_MUSIC_FEATURES, Music


RATE = 16_000
FIRST_BEAT_IN_S = 0.2
BPM = 100


@pytest.fixture(scope="module")
def recording():
    """Decaying bursts of noise, a hundred a minute."""
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(6 * RATE) / RATE
    since_beat = (times - FIRST_BEAT_IN_S) % (60 / BPM)
    envelope = torch.where(times < FIRST_BEAT_IN_S, 0.0, torch.exp(-since_beat / 0.05))
    return 0.3 * envelope * torch.randn(6 * RATE, generator=generator)


@pytest.fixture
def components(build_components):
    return build_components(num_music_features=NUM_MUSIC_FEATURES, sample_size=(256, 4))


def phase_error_in_s(music, first_beat_in_s=FIRST_BEAT_IN_S):
    beat_in_s = 60 / music.tempo_bpm
    return abs((music.first_beat_in_s - first_beat_in_s + beat_in_s / 2) % beat_in_s - beat_in_s / 2)


def test_the_beat_is_heard_and_what_is_not_sure_is_unknown(recording):
    music = hear_music(recording, RATE)
    assert music.tempo_bpm == pytest.approx(BPM, rel=0.01)
    assert phase_error_in_s(music) < 0.03
    assert music.time_signature is None
    later = hear_music(recording, RATE, start_in_s=1.0)
    assert phase_error_in_s(later, FIRST_BEAT_IN_S + 1.0) < 0.03
    assert hear_music(recording, RATE, bpm=200).tempo_bpm == pytest.approx(200, rel=0.02)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32))
    assert hear_music(noise, RATE) == Music()
    assert hear_music(recording[: 2 * RATE], RATE) == Music()


def play(pipe, recording, prompt="calm piano", **arguments):
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 1, "guidance_scale": 1, "output_type": "latent"} | arguments
    return pipe(prompt, audio=recording, sampling_rate=RATE, **arguments).music[0]


def test_what_is_made_keeps_the_beat_that_is_heard(components, recording):
    inpaint = QAMDTInpaintPipeline(**components)
    music = play(inpaint, recording, audio_length_in_s=8, audio_start_in_s=1.5)
    assert music.tempo_bpm == pytest.approx(BPM, rel=0.01)
    assert phase_error_in_s(music, FIRST_BEAT_IN_S + 1.5) < 0.03
    change = QAMDTAudioToAudioPipeline.from_pipe(inpaint)
    assert phase_error_in_s(play(change, recording, "piano at 100 bpm")) < 0.03
    assert play(change, recording, strength=1).first_beat_in_s == 0.0
