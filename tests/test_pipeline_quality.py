"""What `quality=` may be, what the network is told for it, and what is refused."""

import numpy as np
import pytest
import torch

from pipelines.quality_conditioning import add_prefixes, resolve_qualities, resolve_quality
from qamdt.quality import PUBLISHED_QUALITY_STATS


FRAME_TIMES = np.arange(10) + 0.5  # ten seconds, one frame each


def resolve(quality, stats=PUBLISHED_QUALITY_STATS):
    return resolve_quality(quality, stats, FRAME_TIMES, 10.0)


@pytest.mark.parametrize(("word", "level"), [("low", 1), ("medium", 3), ("high", 5)])
def test_a_word_sets_prefix_level_and_every_frame(word, level):
    for stats in (PUBLISHED_QUALITY_STATS, None):
        condition = resolve(word, stats)
        assert condition.prefix == f"{word} quality, "
        assert condition.level == level
        assert condition.frame_levels.tolist() == [level] * 10


@pytest.mark.parametrize(
    ("mos", "level", "prefix"), [(1, 1, "low"), (3.5, 2, "low"), (4.1, 4, "high"), (5.0, 5, "high")]
)
def test_a_score_is_read_with_the_statistics_of_the_model(mos, level, prefix):
    condition = resolve(mos)
    assert condition.level == level
    assert condition.prefix == f"{prefix} quality, "
    assert condition.frame_levels.dtype == np.float32
    np.testing.assert_allclose(condition.frame_levels, PUBLISHED_QUALITY_STATS.fractional_level(mos))


def test_unknown_quality_is_level_zero_without_prefix():
    condition = resolve(None)
    assert (condition.prefix, condition.level) == ("", 0)
    assert not condition.frame_levels.any()


def test_a_list_of_scores_is_spread_over_the_clip():
    condition = resolve([3.4, 4.2])
    expected = PUBLISHED_QUALITY_STATS.fractional_level(3.4 + 0.8 * FRAME_TIMES / 10)
    np.testing.assert_allclose(condition.frame_levels, expected, rtol=1e-5)
    assert condition.level == PUBLISHED_QUALITY_STATS.level(3.8)
    np.testing.assert_array_equal(resolve(np.array([3.4, 4.2])).frame_levels, condition.frame_levels)


def test_points_in_time_stand_where_they_say():
    levels = resolve([(2, 3.3), (8, 4.3)]).frame_levels
    np.testing.assert_allclose(levels[:2], 1.0)
    np.testing.assert_allclose(levels[8:], 5.0)
    assert (np.diff(levels[2:8]) > 0).all()


def test_a_list_of_anything_else_is_one_quality_per_prompt():
    def levels(quality, num_prompts):
        conditions = resolve_qualities(quality, PUBLISHED_QUALITY_STATS, FRAME_TIMES, 10.0, num_prompts=num_prompts)
        return [condition.level for condition in conditions]

    assert levels(["high", "low"], 2) == [5, 1]
    assert levels(["high", 3.8, None], 3) == [5, 3, 0]
    assert levels([[3.3], [4.3, 4.3], [(0, 3.8)]], 3) == [1, 5, 3]
    assert levels([3.3, 4.3], 2) == [3, 3]  # numbers alone are a curve
    with pytest.raises(ValueError, match="one for each of the 3 prompts, got a list of 2"):
        levels(["high", "low"], 3)


def test_an_empty_prompt_stays_empty():
    assert add_prefixes(["piano", ""], [resolve("high")] * 2) == ["high quality, piano", ""]


@pytest.mark.parametrize(
    "quality",
    ["excellent", "High", "", True, [], {}, object(), [True], [(1, 2, 3)], [(1,)], np.ones((2, 3)), ("high",)],
)
def test_what_is_no_quality_is_refused_with_what_would_be(quality):
    with pytest.raises(ValueError, match='`quality` must be "high", "medium", "low", a score from 1 to 5, a curve'):
        resolve(quality)


@pytest.mark.parametrize("quality", [9, 0, -1.0, float("nan"), float("inf"), [3.0, 5.5], [(0, 0.5)]])
def test_scores_outside_the_scale_are_refused(quality):
    with pytest.raises(ValueError, match="`quality` must hold scores from 1 to 5, got"):
        resolve(quality)


@pytest.mark.parametrize("quality", [[(3, 2.0), (1, 3.0)], [(1, 2.0), (1, 3.0)], [(-1, 2.0)], [(float("nan"), 3.0)]])
def test_points_out_of_order_are_refused(quality):
    with pytest.raises(ValueError, match="`quality` must have rising seconds of at least 0"):
        resolve(quality)


def test_points_after_the_clip_are_refused():
    with pytest.raises(ValueError, match=r"`quality` must have seconds up to the length of the clip \(10\), got 11"):
        resolve([(0, 2.0), (11, 3.0)])


def test_scores_need_statistics():
    with pytest.raises(ValueError, match="`quality` must be a word for this model"):
        resolve(3.2, stats=None)


def generate(pipe, quality, prompt="calm piano", **changes):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, quality=quality, num_inference_steps=2, generator=generator, **changes).audios


def test_every_kind_of_quality_makes_other_music(pipe):
    qualities = ["high", "medium", "low", None, 3.5, 4.1, [3.3, 4.3], [4.3, 3.3], [(0.1, 3.3), (0.2, 4.3)]]
    audios = [generate(pipe, quality, negative_quality=None) for quality in qualities]
    for i, first in enumerate(audios):
        for second in audios[:i]:
            assert np.abs(first - second).max() > 1e-5


@pytest.mark.parametrize("option", ["use_quality_token", "use_frame_quality", "use_global_quality"])
def test_each_level_alone_changes_the_music(build_components, option):
    from pipelines.pipeline_qamdt import QAMDTPipeline

    options = {"use_quality_token": False, "use_frame_quality": False, "use_global_quality": False}
    pipe = QAMDTPipeline(**build_components(**options | {option: True}))
    pipe.set_progress_bar_config(disable=True)
    high = generate(pipe, "high", prompt="", guidance_scale=1)  # an empty prompt has no prefix that could act
    assert np.abs(high - generate(pipe, "low", prompt="", guidance_scale=1)).max() > 1e-5


def test_the_negative_quality_matters_when_guided(pipe):
    published = generate(pipe, "high")
    np.testing.assert_array_equal(published, generate(pipe, "high", negative_quality="medium"))
    assert np.abs(published - generate(pipe, "high", negative_quality="low")).max() > 1e-5
    with pytest.raises(ValueError, match='`negative_quality` must be "high"'):
        generate(pipe, "high", negative_quality="bad")


def test_a_rising_curve_starts_low_and_ends_high(pipe):
    told = []
    pipe.transformer.register_to_config(sample_size=(50, 4))  # so that a second is one window
    pipe.transformer.register_forward_pre_hook(lambda *call: told.append(call[2]), with_kwargs=True)
    generate(pipe, [3.3, 4.3], audio_length_in_s=1.0, guidance_scale=1)
    levels = told[0]["frame_quality"][0]
    assert levels.shape == (50,)
    assert levels[0] < 1.1
    assert levels[-1] > 4.9
    assert (levels.diff() > 0).all()
    assert told[0]["quality_level"].tolist() == told[0]["global_quality"].tolist() == [3]
