"""A recording is changed where it scores low and nowhere else, by what the model makes better and by nothing else."""

import json

import numpy as np
import pytest
import soundfile
import torch

from pipelines.cli import main
from pipelines.restoration import MAX_STRENGTH, choose_strength, find_low_spans, quality_curve
from pipelines.spectral_change import carry_change
from whisq.scorer import ClipScore, WhisQScorer


RATE = 16_000


def tone(seconds=1.0, frequency=1000.0):
    return 0.3 * torch.sin(2 * torch.pi * frequency * torch.arange(round(seconds * RATE)) / RATE)


def noise(seconds=1.0, seed=0):
    return 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def make_score(curve, hop_in_s=0.5):
    return ClipScore(
        overall_quality=float(np.mean(curve)),
        text_alignment=None,
        frame_overall_quality=tuple(curve),
        frame_hop_in_s=hop_in_s,
        duration_in_s=len(curve) * hop_in_s,
        sampling_rate=RATE,
        flags=(),
        error=None,
    )


class ScorerOfCurve:
    """Gives every recording the same curve."""

    def __init__(self, *curve):
        self.curve = curve

    def score(self, audio, sampling_rate, prompts=None):
        return [make_score(self.curve, len(audio) / sampling_rate / len(self.curve))]


def test_a_recording_gets_the_change_and_not_the_sound_that_it_is_read_from():
    recording = (tone() + noise())[None]
    other = noise(seed=1)[None]
    torch.testing.assert_close(carry_change(recording, other, other, RATE), recording, atol=1e-5, rtol=1e-4)
    halved = carry_change(recording, other, other / 2, RATE)
    torch.testing.assert_close(halved, recording / 2, atol=1e-4, rtol=1e-3)


def test_noise_goes_and_the_tone_stays():
    recording = (tone() + noise())[None]
    cleaned = carry_change(recording, recording, tone()[None], RATE)[0, 2000:-2000]
    left = cleaned - tone()[2000:-2000]
    assert left.square().mean() < 0.05 * noise().square().mean()


@pytest.mark.parametrize("num_samples", [100, 1600, 16_001])
def test_recordings_of_any_length_keep_it(num_samples):
    recording = noise()[None, :num_samples] if num_samples <= RATE else noise(2)[None, :num_samples]
    assert carry_change(recording, recording, recording, RATE).shape == recording.shape


def test_spans_are_where_the_curve_is_low():
    assert find_low_spans(make_score([2, 2, 5, 5, 3]), 4.0) == ((0.0, 1.0), (2.0, 2.5))
    assert find_low_spans(make_score([5, 4.0]), 4.0) == ()
    assert find_low_spans(make_score([1, 1]), 4.0) == ((0.0, 1.0),)


def test_the_lower_the_score_the_more_is_changed():
    strengths = [choose_strength(make_score([score, 5]), 4.0) for score in (1, 2, 3, 3.9, 4, 5)]
    assert strengths == sorted(strengths, reverse=True)
    assert (strengths[0], strengths[-1]) == (pytest.approx(MAX_STRENGTH), 0)


def test_a_curve_is_told_within_the_recording():
    assert quality_curve(make_score([2, 3])) == [(0.25, 2), (0.75, 3)]


def test_what_scores_high_is_left_alone_to_the_bit(pipe):
    pipe.scorer = ScorerOfCurve(2, 5, 5, 5)
    recording = (tone(2) + noise(2)).numpy()
    restored = pipe.restore(recording, sampling_rate=RATE, strength=0.5, num_inference_steps=4)
    assert restored.spans == ((0.0, 0.5),)
    assert np.array_equal(restored.audio[round(0.76 * RATE) :], recording[round(0.76 * RATE) :])
    assert np.abs(restored.audio[: RATE // 2] - recording[: RATE // 2]).max() > 1e-4
    again = pipe.restore(recording, sampling_rate=RATE, strength=0.5, num_inference_steps=4)
    assert np.array_equal(again.audio, restored.audio)
    other = pipe.restore(recording, sampling_rate=RATE, strength=0.5, num_inference_steps=4, seed=1)
    assert not np.array_equal(other.audio, restored.audio)


def test_a_good_recording_stays_as_it_is(pipe):
    pipe.scorer = ScorerOfCurve(5, 4.9)
    recording = tone().numpy()
    restored = pipe.restore(recording, sampling_rate=RATE)
    assert np.array_equal(restored.audio, recording)
    assert (restored.spans, restored.strength) == ((), 0)
    steps = []
    options = {
        "num_inference_steps": 4,
        "strength": 0.5,
        "callback_on_step_end": lambda *step: steps.append(step[1]) or {},
    }
    assert pipe.restore(recording, sampling_rate=RATE, good_score=5.0, **options).strength == 0.5
    assert steps == [0, 1]


@pytest.mark.parametrize(
    ("audio", "arguments", "message"),
    [
        (torch.zeros(RATE), {}, "`audio` must be audible"),
        (torch.full((RATE,), torch.nan), {}, "`audio` must be finite"),
        (torch.ones(1), {}, "`audio` must last from"),
        (torch.rand(2, RATE), {}, "`audio` must be one recording, got 2"),
        (torch.rand(RATE), {"strength": 1.5}, "`strength` must be a number at least 0 and at most 1, got 1.5"),
        (torch.rand(RATE), {"good_score": 9}, "`good_score` must be a number at least 1 and at most 5, got 9"),
        (torch.rand(RATE), {"prompt": ["piano"]}, "`prompt` must be one text"),
        (torch.rand(RATE), {"num_inference_steps": 0, "strength": 0.5}, "`num_inference_steps` must be"),
    ],
)
def test_what_cannot_be_restored_is_refused(pipe, scorer_dir, audio, arguments, message):
    pipe.scorer = WhisQScorer.from_pretrained(scorer_dir)
    with pytest.raises(ValueError, match=message):
        pipe.restore(audio, **{"sampling_rate": RATE, "good_score": 5} | arguments)


def test_the_command_writes_the_sound_and_its_scores(pipe_dir, scorer_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("old.wav", np.stack([(tone() + noise()).numpy()] * 2, axis=1), 16_000)
    command = ["restore", "old.wav", "--model", str(pipe_dir), "--scorer", str(scorer_dir), "--steps", "3"]
    assert main([*command, "--good-score", "5", "--strength", "0.6", "-o", "new.flac"]) == 0
    assert soundfile.info("new.flac").frames == RATE
    whole = json.loads((tmp_path / "new.json").read_text())
    assert (whole["settings"]["restore_audio"], whole["settings"]["fade_ms"]) == ("old.wav", 0.0)
    record = whole["restoration"]
    assert (record["strength"], record["spans"]) == (0.6, [[0.0, 1.0]])
    assert record["scorer"].startswith("whisq-tiny@")
    assert 1 <= record["before"]["overall_quality"] <= 5
    assert record["after"]["frame_overall_quality"]
    assert "1.0 of 1.0 s changed at strength 0.60" in capsys.readouterr().out
    for status, arguments, message in [
        (2, ["restore", "none.wav"], "AUDIO must be a file, got 'none.wav'"),
        (2, ["restore", "old.wav", "-o", "new.aiff"], "`-o` must end in one of"),
        (2, ["restore", "old.wav", "--steps", "0"], "`steps` must be an integer of at least 1"),
        (2, [*command, "--strength", "2"], "`strength` must be a number at least 0 and at most 1"),
        (1, ["restore", "old.wav", "-o", "old.wav", "--overwrite"], "would be written over, and it is an input"),
        (1, ["restore", "new.flac", "-o", "foreign.wav"], "is there already, and this command did not make it"),
    ]:
        soundfile.write("foreign.wav", np.zeros(100), 16_000)
        assert main(arguments) == status
        assert message in capsys.readouterr().err
    # Its own file may be made again, and its record is a request.
    assert main([*command, "--good-score", "5", "--strength", "0.6", "-o", "new.flac"]) == 0
    assert main(["generate", "--request", "new.json", "-o", "again.flac"]) == 0
    assert np.array_equal(soundfile.read("again.flac")[0], soundfile.read("new.flac")[0])
