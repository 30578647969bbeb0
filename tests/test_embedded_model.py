"""What the embedded model promises: music, offline, fast, repeatable, and at the quality asked for.

These tests load the real weights and generate, which takes seconds; they share one pipeline.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pipelines.evaluation.signal_measures import bandwidth_hz, noise_floor_db
from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.embedded import default_model_dir


PROMPTS = ["solo piano", "techno at 130 bpm", "string quartet", "funk with electric bass and drums"]


@pytest.fixture(scope="module")
def pipe() -> QAMDTPipeline:
    pipe = QAMDTPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def test_the_literal_call_makes_music():
    output = QAMDTPipeline("calm solo piano ballad", quality="high", audio_length_in_s=2.0, num_inference_steps=4)
    waveform = output.audios[0]
    assert waveform.shape == (32_000,)
    assert np.isfinite(waveform).all()
    assert 0.01 < np.abs(waveform).max() <= 1


def test_a_seed_means_one_waveform(pipe):
    first, second, other = (
        pipe("solo piano", audio_length_in_s=2.0, num_inference_steps=4, generator=seeds(seed)).audios
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 0.01


def test_a_batch_equals_its_prompts_one_by_one(pipe):
    arguments = {"audio_length_in_s": 2.0, "num_inference_steps": 4}
    batch = pipe(PROMPTS[:2], generator=seeds(0, 1), **arguments).audios
    for number, prompt in enumerate(PROMPTS[:2]):
        single = pipe(prompt, generator=seeds(number), **arguments).audios[0]
        np.testing.assert_allclose(batch[number], single, atol=1e-3)


def test_high_quality_is_wider_and_cleaner_than_low(pipe):
    arguments = {"audio_length_in_s": 5.12, "num_inference_steps": 6}
    audios = {
        quality: pipe(PROMPTS, quality=quality, generator=seeds(0, 1, 2, 3), **arguments).audios
        for quality in ("high", "low")
    }
    wider = [
        bandwidth_hz(high, 16_000) > bandwidth_hz(low, 16_000)
        for high, low in zip(audios["high"], audios["low"], strict=True)
    ]
    cleaner = [
        noise_floor_db(high, 16_000) < noise_floor_db(low, 16_000)
        for high, low in zip(audios["high"], audios["low"], strict=True)
    ]
    assert sum(wider) + sum(cleaner) >= 6  # of 8; chance is 4


def test_saving_and_loading_keeps_every_sample(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = QAMDTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    arguments = {"audio_length_in_s": 2.0, "num_inference_steps": 3}
    original = pipe("solo piano", generator=seeds(0), **arguments).audios
    np.testing.assert_array_equal(loaded("solo piano", generator=seeds(0), **arguments).audios, original)


def test_the_weights_are_small_and_have_a_card():
    files = [path for path in default_model_dir().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 55e6
    card = (default_model_dir() / "README.md").read_text()
    assert "license: apache-2.0" in card


def test_ten_seconds_take_little_time_and_memory():
    """A process of its own, so that its peak memory is what a user's would be."""
    script = (
        "import resource, time\n"
        "from pipelines.pipeline_qamdt import QAMDTPipeline\n"
        "pipe = QAMDTPipeline.from_pretrained()\n"
        "started = time.process_time()\n"
        "pipe('solo piano', audio_length_in_s=10.0)\n"
        "print(time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    cpu_seconds, peak_kib = (float(value) for value in result.stdout.split())
    assert cpu_seconds < 80  # two cores for ten seconds, on a machine four times slower than that
    assert peak_kib < 3 * 2**20
