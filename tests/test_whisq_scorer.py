"""`WhisQScorer`: one clip scores the same alone, in a batch, padded, and again; long clips, curves and bad audio."""

import numpy as np
import pytest
import soundfile
import torch

from whisq.scorer import WhisQScorer
from whisq.windows import make_window


RATE = 16_000


@pytest.fixture(scope="module")
def scorer(scorer_dir):
    return WhisQScorer.from_pretrained(scorer_dir)


def music(seconds, seed=0, rate=RATE):
    """A chord that changes every quarter of a second, with noise of changing loudness."""
    generator = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    notes = 110 * 2 ** (generator.integers(0, 36, (3, int(seconds * 4) + 2)) / 12)
    chord = sum(np.sin(2 * np.pi * voice[(times * 4).astype(int)] * times) for voice in notes)
    noise = generator.normal(size=len(times)) * generator.random(int(seconds) + 1)[times.astype(int)]
    return (0.15 * chord + 0.1 * noise).clip(-0.9, 0.9).astype(np.float32)


def assert_alike(found, expected, tolerance=1e-4):
    assert found.overall_quality == pytest.approx(expected.overall_quality, abs=tolerance)
    assert found.text_alignment == pytest.approx(expected.text_alignment, abs=tolerance)
    assert found.frame_overall_quality == pytest.approx(expected.frame_overall_quality, abs=tolerance)


def test_a_batch_gives_what_single_clips_give(scorer):
    clips = [music(seconds, seed) for seed, seconds in enumerate((0.1, 10, 3.3, 30, 1.0))]
    prompts = ["calm piano", "fast drums", None, "guitar", "a calm melody"]
    together = scorer.score(clips, RATE, prompts)
    alone = [scorer.score(clip, RATE, prompt)[0] for clip, prompt in zip(clips, prompts, strict=True)]
    for found, expected in zip(together, alone, strict=True):
        assert_alike(found, expected)
    assert len({round(score.overall_quality, 3) for score in together}) == 5
    assert together == scorer.score(clips, RATE, prompts)


def test_a_file_scores_as_its_samples(scorer, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, music(3, rate=22_050), 22_050, subtype="FLOAT")
    expected = scorer.score(music(3, rate=22_050), 22_050, "calm piano")
    assert scorer.score(path, prompts="calm piano") == scorer.score(str(path), prompts=["calm piano"]) == expected
    from_file, from_samples = scorer.score([path, music(2)], RATE)
    assert from_file.overall_quality == pytest.approx(expected[0].overall_quality, abs=1e-4)
    assert (from_file.sampling_rate, from_samples.sampling_rate) == (22_050, RATE)
    with pytest.raises(ValueError, match="`sampling_rate` must be None for sound files"):
        scorer.score(path, RATE)
    with pytest.raises(ValueError, match="`sampling_rate` must be from 1000 to 1000000 Hz for waveforms, got None"):
        scorer.score(music(1))
    with pytest.raises(FileNotFoundError, match="there is no file 'no.wav'"):
        scorer.score("no.wav")
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(ValueError, match="`path` must be a readable wav.*text.wav"):
        scorer.score(tmp_path / "text.wav")


def test_padding_changes_no_score(scorer):
    """As one batch pads it: ten seconds beside thirty, the padding behind the length that the encoder is told."""
    clip = make_window(music(10)[:, None], RATE)
    longest = make_window(music(30, seed=1)[:, None], RATE)
    alone = scorer.score_windows([clip], ["calm piano"])[0]
    padded = scorer.score_windows([longest, clip], ["drums", "calm piano"])[1]
    assert padded.overall_quality == pytest.approx(alone.overall_quality, abs=1e-4)
    assert padded.text_alignment == pytest.approx(alone.text_alignment, abs=1e-4)
    np.testing.assert_allclose(padded.frame_scores, alone.frame_scores, atol=1e-4)
    silence_as_music = scorer.score(np.pad(music(10), (0, 20 * RATE)), RATE)[0]
    assert abs(silence_as_music.overall_quality - alone.overall_quality) > 1e-3


def test_quality_is_of_the_sound_and_alignment_of_the_prompt(scorer):
    piano, drums, none = scorer.score([music(2)] * 3, RATE, ["calm piano", "fast drums", None])
    assert piano.overall_quality == pytest.approx(drums.overall_quality, abs=1e-6)
    assert piano.overall_quality == pytest.approx(none.overall_quality, abs=1e-6)
    assert piano.text_alignment != drums.text_alignment
    assert none.text_alignment is None


def test_long_audio_is_the_mean_of_its_windows_by_their_length(scorer):
    clip = music(40)
    whole = scorer.score(clip, RATE, "guitar")[0]
    first, second = scorer.score([clip[: 30 * RATE], clip[15 * RATE :]], RATE, "guitar")
    for name in ("overall_quality", "text_alignment"):
        expected = (30 * getattr(first, name) + 25 * getattr(second, name)) / 55
        assert getattr(whole, name) == pytest.approx(expected, abs=1e-4)
    assert whole.duration_in_s == 40


def test_the_curve_follows_the_music(scorer):
    one, other = music(6), 0.3 * np.random.default_rng(5).normal(size=6 * RATE).clip(-1, 1).astype(np.float32)
    joined = scorer.score(np.concatenate([one, other]), RATE)[0]
    curves = [np.array(scorer.score(part, RATE)[0].frame_overall_quality) for part in (one, other)]
    curve = np.array(joined.frame_overall_quality)
    assert len(curve) == round(12 / joined.frame_hop_in_s)
    assert curve.mean() == pytest.approx(joined.overall_quality, abs=1e-6)
    # Away from the cut and the ends a frame hears the same as in its own part; the mean alone moves.
    moved = curve[3:8] - curves[0][3:8]
    assert moved == pytest.approx(moved.mean(), abs=1e-3)
    difference = curve[-8:-3].mean() - curve[3:8].mean()
    levels = [
        scorer.score_windows([make_window(part[:, None], RATE)], [None])[0].frame_scores.mean()
        for part in (one, other)
    ]
    assert np.sign(difference) == np.sign(levels[1] - levels[0])


def test_the_curve_changes_when_the_music_does(scorer):
    steady = 0.3 * np.sin(2 * np.pi * 440 * np.arange(10 * RATE) / RATE).astype(np.float32)
    rough = 0.3 * np.random.default_rng(5).normal(size=10 * RATE).clip(-1, 1).astype(np.float32)
    for cut in (3.3, 6.0):
        clip = np.concatenate([steady[: round(cut * RATE)], rough[round(cut * RATE) :]])
        score = scorer.score(clip, RATE)[0]
        curve = np.array(score.frame_overall_quality)
        before, after = curve[1:4].mean(), curve[-4:-1].mean()
        has_left = np.abs(curve - before) > 0.05 * abs(after - before)
        has_come = np.abs(curve - after) < 0.05 * abs(after - before)
        times = (np.arange(len(curve)) + 0.5) * score.frame_hop_in_s
        # A frame hears two seconds, and the encoder a little more: the change begins and ends about as far from the cut.
        first_changed, last_changing = times[2:][has_left[2:]][0], times[:-2][~has_come[:-2]][-1]
        assert 0 < cut - first_changed < 1.7
        assert 0 < last_changing - cut < 1.7
        assert (first_changed + last_changing) / 2 == pytest.approx(cut, abs=0.4)


def test_curves_of_overlapping_windows_meet(scorer):
    clip = music(50)
    curve = np.array(scorer.score(clip, RATE)[0].frame_overall_quality)
    inner = np.array(scorer.score(clip[: 30 * RATE], RATE)[0].frame_overall_quality)
    assert len(curve) == round(50 / scorer.frame_hop_in_s)
    moved = curve[4:25] - inner[4:25]  # heard by the first window alone
    assert moved == pytest.approx(moved.mean(), abs=1e-3)


def test_any_rate_and_kind_of_array(scorer):
    expected = scorer.score(music(2), RATE)[0]
    assert scorer.score(torch.from_numpy(music(2)).double(), RATE)[0] == expected
    both = scorer.score(np.stack([music(2), music(2, seed=1)]), RATE)
    assert both[0].overall_quality == pytest.approx(expected.overall_quality, abs=1e-4)
    resampled = scorer.score(music(2, rate=44_100), 44_100)[0]
    assert (resampled.sampling_rate, resampled.duration_in_s) == (44_100, 2.0)
    assert scorer.score(music(2, rate=8000), 8000)[0].flags == ("low_sampling_rate",)


def test_audio_without_music_has_no_score_but_a_reason(scorer):
    broken = music(1)
    broken[100] = np.inf
    silent, nan, nothing, fine = scorer.score(
        [np.zeros(RATE, np.float32), broken, np.zeros(0, np.float32), music(1)], RATE, "piano"
    )
    assert (silent.error, silent.flags) == ("the audio is silent", ("silent",))
    assert (nan.error, nan.flags) == ("the audio has samples that are not finite", ("nan",))
    assert nothing.error == "the file holds no samples of the clip"
    assert [score.overall_quality for score in (silent, nan, nothing)] == [None] * 3
    assert fine.error is None
    assert 1 <= fine.text_alignment <= 5


def test_an_empty_prompt_is_flagged(scorer):
    score = scorer.score(music(1), RATE, [" "])[0]
    assert (score.flags, score.text_alignment, score.error) == (("empty_prompt",), None, None)


def test_wrong_arguments_are_refused(scorer, scorer_dir):
    with pytest.raises(ValueError, match=r"must have shape \(samples,\) or \(batch, samples\), got \(2, 3, 4\)"):
        scorer.score(np.zeros((2, 3, 4), np.float32), RATE)
    with pytest.raises(ValueError, match="must be mono floating-point samples"):
        scorer.score([np.zeros(100, np.int16)], RATE)
    with pytest.raises(ValueError, match="got 2 for 1 clips"):
        scorer.score(music(1), RATE, ["a", "b"])
    with pytest.raises(ValueError, match="from 1000 to 1000000 Hz"):
        scorer.score(music(1), 0)
    from whisq.modeling_audio_tower import AudioTower

    tower = AudioTower(num_mel_bins=16, channels=(4, 4, 8), hidden_size=8, num_layers=1)
    with pytest.raises(ValueError, match="tokens of width 16"):
        WhisQScorer(scorer.model, tower)
    with pytest.raises(FileNotFoundError, match="got 'no-such-folder'"):
        WhisQScorer.from_pretrained("no-such-folder")


def test_other_weights_are_another_scorer(scorer, scorer_dir, tmp_path):
    assert scorer.name.startswith("whisq-tiny@")
    assert WhisQScorer.from_pretrained(scorer_dir).name == scorer.name
    from whisq.modeling_whisq import WhisQModel

    model = WhisQModel.from_pretrained(scorer_dir)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    model.save_pretrained(tmp_path / "whisq-tiny")
    assert WhisQScorer.from_pretrained(tmp_path / "whisq-tiny").name != scorer.name


def test_how_loud_a_clip_was_mastered_changes_nothing(scorer):
    waveform = 0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    loud, quiet = scorer.score([waveform, 0.01 * waveform], 16_000)
    assert quiet.overall_quality == pytest.approx(loud.overall_quality, abs=1e-4)
    assert quiet.frame_overall_quality == pytest.approx(loud.frame_overall_quality, abs=1e-4)
