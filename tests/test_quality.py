import json

import numpy as np
import pytest
import torch

from qamdt.quality import PUBLISHED_QUALITY_STATS, QualityStats
from qamdt.quality_words import quality_prefix


def test_published_thresholds_give_the_published_levels():
    scores = [1.0, 3.39, 3.4, 3.59, 3.6, 3.99, 4.0, 4.19, 4.2, 5.0]
    assert PUBLISHED_QUALITY_STATS.level(scores).tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize(
    ("mos", "prefix"), [(3.55, "low quality, "), (3.56, "medium quality, "), (4.05, "high quality, "), (None, "")]
)
def test_published_thresholds_give_the_published_prefix(mos, prefix):
    assert PUBLISHED_QUALITY_STATS.prefix(mos) == prefix


def test_bell_shaped_scores_get_the_published_rule():
    scores = np.random.default_rng(0).normal(3.8, 0.2, size=20_000)
    stats = QualityStats.from_scores(scores, "test")
    assert stats.method == "sigma"
    np.testing.assert_allclose(stats.edges, PUBLISHED_QUALITY_STATS.edges, atol=0.02)
    np.testing.assert_allclose(stats.prefix_edges, PUBLISHED_QUALITY_STATS.prefix_edges, atol=0.02)


def test_two_heaps_of_scores_still_fill_every_level():
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.uniform(1, 3, 5000), generator.normal(4.7, 0.02, 5000)])
    stats = QualityStats.from_scores(scores, "test")
    assert stats.method == "quantile"
    assert (np.bincount(stats.level(scores), minlength=6)[1:] > 1500).all()
    assert stats.prefix(stats.score(1)) == "low quality, "
    assert stats.prefix(stats.score(5)) == "high quality, "


@pytest.mark.parametrize("num_perfect", [0, 300, 1200, 50_000])
def test_levels_and_prefixes_agree_however_many_scores_are_perfect(num_perfect):
    scores = np.concatenate([np.full(num_perfect, 5.0), np.random.default_rng(0).uniform(1.5, 4.9, size=1000)])
    stats = QualityStats.from_scores(scores, "test")
    first, second, third, fourth = stats.edges
    low, high = stats.prefix_edges
    assert first < low < second < third < high < fourth <= 5.0
    assert stats.level(5.0) == stats.fractional_level(5.0) == 5
    assert (np.bincount(stats.level(scores), minlength=6)[1:] > 0).all()
    for level, prefix in ((1, "low"), (3, "medium"), (5, "high")):
        assert stats.prefix(stats.score(level)) == quality_prefix(prefix)


def test_missing_scores_have_level_zero_and_do_not_move_the_statistics():
    stats = QualityStats.from_scores([1.0, 2.0, np.nan, 3.0, 4.0, 5.0], "test")
    assert stats.mean == 3.0
    assert stats.num_clips == 5
    assert stats.level(None) == stats.level(float("nan")) == 0
    assert stats.fractional_level(None) == 0.0
    assert stats.prefix(float("nan")) == ""
    assert stats.level([np.nan, 3.0]).tolist() == [0, 3]


def test_fractional_levels_are_whole_in_the_middle_of_a_level_and_rise_with_the_score():
    stats = PUBLISHED_QUALITY_STATS
    centres = [stats.score(level) for level in range(1, 6)]
    np.testing.assert_allclose(stats.fractional_level(centres), [1, 2, 3, 4, 5], rtol=1e-6)
    assert stats.level(centres).tolist() == [1, 2, 3, 4, 5]
    curve = stats.fractional_level(np.linspace(1, 5, 200))
    assert (np.diff(curve) >= 0).all()
    assert (curve.min(), curve.max()) == (1.0, 5.0)


def test_results_come_back_in_the_kind_that_was_given():
    stats = PUBLISHED_QUALITY_STATS
    assert isinstance(stats.level(3.8), int)
    assert isinstance(stats.fractional_level(3.8), float)
    levels = stats.level(torch.tensor([[1.0, 5.0]]))
    assert levels.dtype == torch.long
    assert levels.tolist() == [[1, 5]]
    assert stats.fractional_level(torch.tensor([3.8])).dtype == torch.float32


def test_saving_and_loading_changes_nothing(tmp_path):
    stats = QualityStats.from_scores(np.random.default_rng(0).normal(3, 1, 1000), "test")
    stats.save(tmp_path / "quality.json")
    assert QualityStats.load(tmp_path / "quality.json") == stats
    assert QualityStats.from_dict(json.loads(json.dumps(stats.to_dict()))) == stats


def test_the_texts_between_two_scores_are_those_of_all_scores_between_them():
    stats = PUBLISHED_QUALITY_STATS
    scores = [1.0, 3.55, 3.56, 3.8, 4.04, 4.05, 5.0]
    for start, lowest in enumerate(scores):
        for stop, highest in enumerate(scores[start:], start + 1):
            between = stats.prefixes_between(lowest, highest)
            assert set(between) == {stats.prefix(score) for score in scores[start:stop]}
    assert stats.prefixes_between(1, 5) == ["low quality, ", "medium quality, ", "high quality, "]


def test_statistics_that_were_saved_without_words_know_the_published_ones():
    older = {name: value for name, value in PUBLISHED_QUALITY_STATS.to_dict().items() if name != "words"}
    assert QualityStats.from_dict(older) == PUBLISHED_QUALITY_STATS
    with pytest.raises(ValueError, match=r"`words` must be among \['low', 'medium', 'high'\], got \['bad', 'good'\]"):
        QualityStats.from_dict(older | {"words": ["bad", "good"], "prefix_edges": [3.0]})


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 5 distinct scores"):
        QualityStats.from_scores([3.0] * 100, "test")
    with pytest.raises(ValueError, match='`method` must be "sigma", "quantile" or None'):
        QualityStats.from_scores([1.0, 2.0, 3.0, 4.0, 5.0], "test", method="median")
    with pytest.raises(ValueError, match="`edges` must be 4 increasing scores"):
        QualityStats.from_dict(PUBLISHED_QUALITY_STATS.to_dict() | {"edges": [4, 3, 2, 1]})
    with pytest.raises(ValueError, match=r"missing \['std'\], unknown \['sigma'\]"):
        QualityStats.from_dict(
            {("sigma" if k == "std" else k): v for k, v in PUBLISHED_QUALITY_STATS.to_dict().items()}
        )
    (tmp_path / "quality.json").write_text("not json")
    with pytest.raises(ValueError, match="must be a JSON file of quality statistics"):
        QualityStats.load(tmp_path / "quality.json")
    with pytest.raises(ValueError, match="`level` must be 1 to 5, got 0"):
        PUBLISHED_QUALITY_STATS.score(0)
    with pytest.raises(ValueError, match="`word` must be one of"):
        quality_prefix("excellent")
