"""What is written has the loudness asked for, does not clip, and does not click."""

import json

import numpy as np
import pyloudnorm
import pytest
import soundfile
import soxr
import torch

from pipelines import mastering
from pipelines.cli import main
from pipelines.mastering import PEAK_DBTP, master, measure_loudness, true_peak_db


RATE = 16_000


def tone(seconds=1.0, *, amplitude=0.1, frequency=1000.0, rate=RATE):
    times = np.arange(round(seconds * rate)) / rate
    return torch.from_numpy(amplitude * np.sin(2 * np.pi * frequency * times)).float()


def clicks(seconds=1.0):
    """Soft noise with a loud click ten times a second: its loudness is low and its peak is high."""
    noise = 0.01 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(0))
    noise[800::1600] = 0.8
    return noise


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_clip_gets_the_loudness_and_the_rate_that_are_asked_for(rate):
    mastered = master(tone(2.0), RATE, output_sampling_rate=rate, loudness=-14)
    assert mastered.sampling_rate == rate
    assert len(mastered.waveform) == pytest.approx(2 * rate, abs=1)
    assert mastered.loudness_lufs == pytest.approx(-14, abs=1e-3)
    heard = pyloudnorm.Meter(rate).integrated_loudness(mastered.waveform.double().numpy())
    assert heard == pytest.approx(-14, abs=0.1)
    # BS.1770: a sine of 997 Hz at full scale is at -3.01 LUFS.
    assert measure_loudness(tone(2.0, amplitude=1.0, frequency=997.0).numpy(), RATE) == pytest.approx(-3.01, abs=0.1)


def test_a_clip_is_only_lifted_as_far_as_it_does_not_clip(monkeypatch):
    warnings = []
    monkeypatch.setattr(mastering.logger, "warning", warnings.append)
    mastered = master(clicks(), RATE, loudness=-10)
    assert mastered.loudness_lufs < -11
    assert warnings == [
        f"`loudness` of -10 LUFS would clip, so the clip is only brought to {mastered.loudness_lufs:.1f} LUFS."
    ]
    assert true_peak_db(mastered.waveform.numpy()) == pytest.approx(PEAK_DBTP, abs=0.05)
    heard = pyloudnorm.Meter(RATE).integrated_loudness(mastered.waveform.double().numpy())
    assert heard == pytest.approx(mastered.loudness_lufs, abs=0.1)


def test_what_would_clip_is_made_softer_rather_than_cut_off():
    loud = tone(amplitude=1.6)
    mastered = master(loud, RATE, fade_ms=0)
    assert mastered.gain_db == pytest.approx(PEAK_DBTP - 20 * np.log10(1.6), abs=0.05)
    scale = 10 ** (mastered.gain_db / 20)
    torch.testing.assert_close(mastered.waveform, loud * scale, atol=1e-6, rtol=1e-5)


def test_peaks_between_the_samples_count_wherever_they_are():
    between = np.tile([1.0, 1.0, -1.0, -1.0], 200_000)  # a sine of 1.41 that is nowhere sampled at its peak
    assert true_peak_db(between) == pytest.approx(3.01, abs=0.3)
    for place in (10, 2**19, 799_990):  # at the seam of two blocks and at the ends
        impulse = np.zeros(800_000)
        impulse[place : place + 2] = 0.5
        assert true_peak_db(impulse) == pytest.approx(true_peak_db(np.roll(impulse, 1000 - place)), abs=0.1)


def test_both_ends_fade_and_nothing_else_changes():
    flat = torch.full((1600,), 0.5)
    faded = master(flat, RATE, fade_ms=5).waveform
    assert faded[0] == 0
    assert faded[-1] == 0
    assert (faded[:80].diff() > 0).all()
    assert (faded[-80:].diff() < 0).all()
    torch.testing.assert_close(faded[80:-80], flat[80:-80])
    assert torch.equal(master(flat, RATE, fade_ms=0).waveform, flat)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 100, 6399])
def test_clips_shorter_than_a_gating_block_are_mastered(num_samples):
    mastered = master(tone(1.0, amplitude=0.5)[1 : num_samples + 1], RATE, loudness=-20)
    assert len(mastered.waveform) == num_samples
    assert mastered.waveform.isfinite().all()
    assert mastered.waveform.abs().max() <= 10 ** (PEAK_DBTP / 20) + 1e-6


def test_silence_stays_silent():
    mastered = master(torch.zeros(RATE), RATE, output_sampling_rate=48_000, loudness=-14)
    assert torch.equal(mastered.waveform, torch.zeros(48_000))
    assert mastered.loudness_lufs is None


@pytest.mark.parametrize("suffix", [".wav", ".opus"])
def test_the_command_writes_what_people_expect(pipe_dir, tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    rate = 48_000 if suffix == ".opus" else 44_100
    command = ["generate", "piano", "--model", str(pipe_dir), "--steps", "1", "--seconds", "0.5"]
    assert main([*command, "--sampling-rate", str(rate), "--loudness", "-23", "-o", f"out{suffix}"]) == 0
    samples, found = soundfile.read(f"out{suffix}")
    assert found == rate
    assert len(samples) == pytest.approx(rate / 2, rel=0.06)
    sound = json.loads((tmp_path / "out.json").read_text())["sound"]
    assert (sound["sampling_rate"], sound["seconds"]) == (rate, pytest.approx(0.5, abs=1e-4))
    assert pyloudnorm.Meter(rate).integrated_loudness(samples) == pytest.approx(sound["loudness_lufs"], abs=0.5)
    assert np.abs(soxr.resample(samples, 1, 4)).max() < 1
    if suffix == ".wav":
        assert samples[0] == samples[-1] == 0
