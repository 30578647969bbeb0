"""Degradations get worse with severity, keep the length, and are scored where they are."""

import numpy as np
import pytest

from data_prep.degradation_score import FRAME_RATE, degradation_mos
from data_prep.degradations import KIND_CHANCES, KINDS, Degradation, degrade, draw_degradation
from data_prep.structure_damage import STRUCTURE_KINDS, break_structure


RATE = 16_000
SEVERITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Two synthetic clips: plucked chords, and a steady rich tone with a beat of noise."""
    time = np.arange(int(10.24 * RATE)) / RATE
    generator = np.random.default_rng(0)
    plucked = np.zeros_like(time)
    for start in np.arange(0, 10, 0.5):
        age = np.maximum(time - start, 0)
        for harmonic in range(1, 20):
            frequency_hz = generator.choice([110.0, 146.8, 164.8]) * harmonic
            plucked += (time >= start) * np.exp(-age * 3) * np.sin(2 * np.pi * frequency_hz * age) / harmonic
    tone = sum(np.sin(2 * np.pi * 98 * harmonic * time) / harmonic for harmonic in range(1, 60))
    beat = generator.standard_normal(len(time)) * np.exp(-((time * 2) % 1) * 12)
    return [(0.5 * x / np.abs(x).max()).astype(np.float32) for x in (plucked, tone + 2 * beat)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_falls_with_severity(kind, clips):
    for clip in clips:
        degraded = [degrade(clip, RATE, Degradation(kind, severity, seed=1)) for severity in SEVERITIES]
        scores = [degradation_mos(clip, x, RATE)[0] for x in degraded]
        assert all(later < earlier + 0.05 for earlier, later in zip(scores, scores[1:], strict=False)), scores
        assert scores[0] > 3.8
        assert scores[-1] < scores[0] - 1.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_degradation_is_repeatable_and_keeps_length_and_range(kind, clips):
    degradation = Degradation(kind, 0.7, seed=3)
    degraded = degrade(clips[0], RATE, degradation)
    np.testing.assert_array_equal(degraded, degrade(clips[0], RATE, degradation))
    assert degraded.shape == clips[0].shape
    assert np.isfinite(degraded).all()
    assert np.abs(degraded).max() <= 1.0


def test_an_untouched_clip_scores_five_throughout(clips):
    score, frames = degradation_mos(clips[0], clips[0], RATE)
    assert score == 5.0
    assert frames.shape == (int(10.24 * FRAME_RATE),)
    assert (frames == 5.0).all()


def test_silence_against_silence_scores_five():
    silence = np.zeros(RATE, dtype=np.float32)
    assert degradation_mos(silence, silence, RATE)[0] == 5.0


@pytest.mark.parametrize("kind", ["noise", "band_limit", "microphone"])
def test_the_curve_tells_the_bad_half_from_the_good_one(kind, clips):
    score, frames = degradation_mos(clips[1], degrade(clips[1], RATE, Degradation(kind, 0.7, "second_half", 2)), RATE)
    good, bad = frames[: len(frames) // 3], frames[-len(frames) // 3 :]
    assert good.min() > 4.9
    assert bad.mean() < 3.5
    assert bad.max() < good.min()
    assert bad.mean() < score < good.mean()


def test_a_constant_degradation_gives_a_flat_curve_around_the_clip_score(clips):
    score, frames = degradation_mos(clips[1], degrade(clips[1], RATE, Degradation("band_limit", 0.5)), RATE)
    assert frames.std() < 0.25
    assert frames.mean() == pytest.approx(score, abs=0.15)


def test_a_rising_degradation_gives_a_falling_curve(clips):
    _, frames = degradation_mos(clips[1], degrade(clips[1], RATE, Degradation("noise", 0.8, "rising")), RATE)
    thirds = [part.mean() for part in np.array_split(frames, 3)]
    assert thirds[0] > thirds[1] > thirds[2]


def test_drawn_degradations_cover_kinds_severities_and_shapes():
    generator = np.random.default_rng(0)
    drawn = [draw_degradation(generator) for _ in range(2000)]
    counts = {kind: sum(degradation.kind == kind for degradation in drawn) for kind in KINDS}
    for kind, chance in zip(KINDS, KIND_CHANCES, strict=True):
        assert counts[kind] / 2000 == pytest.approx(chance, abs=0.03)
    severities = [degradation.severity for degradation in drawn]
    assert min(severities) < 0.05
    assert max(severities) > 0.95
    assert 0.5 < np.mean([degradation.shape == "constant" for degradation in drawn]) < 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wobble", 0.5), "`kind` must be one of"),
        (("noise", 1.5), "`severity` must lie between 0 and 1"),
        (("noise", 0.5, "zigzag"), "`shape` must be one of"),
    ],
)
def test_impossible_degradations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Degradation(*arguments)


def test_clips_of_different_length_cannot_be_compared(clips):
    with pytest.raises(ValueError, match="as long as `reference`"):
        degradation_mos(clips[0], clips[0][:-1], RATE)


@pytest.mark.parametrize("kind", STRUCTURE_KINDS)
def test_music_without_structure_sounds_on_as_loud_and_as_long(kind, clips):
    broken = break_structure(clips[0], RATE, kind, seed=1)
    np.testing.assert_array_equal(broken, break_structure(clips[0], RATE, kind, seed=1))
    assert broken.shape == clips[0].shape
    assert np.abs(broken).max() <= 1.0
    assert broken.std() == pytest.approx(clips[0].std(), rel=0.1)
    assert break_structure(clips[0][:3], RATE, kind).shape == (3,)
    assert np.isfinite(break_structure(0 * clips[0][:RATE], RATE, kind)).all()


def test_each_kind_takes_its_own_structure(clips):
    bar = RATE  # the chords come every half second
    loudness = {}
    for kind in STRUCTURE_KINDS:
        broken = break_structure(clips[0], RATE, kind, bar_in_s=1.0, seed=1)
        loudness[kind] = np.square(broken[: 10 * RATE]).reshape(-1, RATE // 20).mean(axis=1)
    strokes = np.square(clips[0][: 10 * RATE]).reshape(-1, RATE // 20).mean(axis=1)
    assert loudness["drone"].std() / loudness["drone"].mean() < 0.5 * strokes.std() / strokes.mean()
    assert loudness["smear"].std() / loudness["smear"].mean() < 0.5 * strokes.std() / strokes.mean()
    repeated = break_structure(clips[0], RATE, "repeated_bar", bar_in_s=1.0)
    np.testing.assert_allclose(repeated[:bar], repeated[3 * bar : 4 * bar], atol=1e-6)
    shuffled = break_structure(clips[0], RATE, "shuffled_bars", bar_in_s=1.0, seed=1)
    middle = slice(RATE // 4, 3 * RATE // 4)
    starts = [number * bar for number in range(10)]
    likeness = np.array(
        [[np.corrcoef(clips[0][a:][middle], shuffled[b:][middle])[0, 1] for a in starts] for b in starts]
    )
    order = likeness.argmax(axis=1)
    assert (likeness.max(axis=1) > 0.95).all()
    assert not (np.diff(order) == 1).any()


def test_unknown_kinds_of_structure_are_refused(clips):
    with pytest.raises(ValueError, match="`kind` must be one of .*'drone'.*got 'noise'"):
        break_structure(clips[0], RATE, "noise")


def test_a_smear_of_music_that_falls_silent_is_finite(clips):
    clip = clips[0].copy()
    clip[len(clip) // 3 :] = 0.0
    assert np.isfinite(break_structure(clip, RATE, "smear")).all()
