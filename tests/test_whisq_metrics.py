import math

import numpy as np
import pytest
from scipy import stats

from whisq.evaluation.metrics import average_by_system, measure_agreement, measure_system_agreement


RATINGS = [1.0, 2.0, 2.0, 4.0, 5.0]
PREDICTIONS = [1.5, 2.5, 1.0, 3.0, 4.5]


def test_figures_are_those_of_their_definitions():
    agreement = measure_agreement(RATINGS, PREDICTIONS)
    assert agreement.mse == pytest.approx((0.25 + 0.25 + 1 + 1 + 0.25) / 5)
    assert agreement.lcc == pytest.approx(np.corrcoef(RATINGS, PREDICTIONS)[0, 1])
    assert agreement.srcc == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4, 5], [2, 3, 1, 4, 5])[0, 1])
    # Of ten pairs one is tied in the ratings, one is in the wrong order, eight are in the right one.
    assert agreement.ktau == pytest.approx((8 - 1) / math.sqrt(9 * 10))
    assert (agreement.count, agreement.intervals) == (5, {})


def test_a_constant_prediction_has_no_correlation():
    agreement = measure_agreement(RATINGS, [3.0] * 5)
    assert math.isnan(agreement.srcc)
    assert agreement.to_dict()["srcc"] is None
    assert agreement.mse > 0


def test_intervals_hold_the_true_correlation_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    true_lcc, hits = 0.6, 0
    for seed in range(60):
        ratings, noise = generator.normal(size=(2, 60))
        predictions = true_lcc * ratings + math.sqrt(1 - true_lcc**2) * noise
        low, high = measure_agreement(ratings, predictions, num_resamples=60, seed=seed).intervals["lcc"]
        hits += low <= true_lcc <= high
    assert stats.binom.cdf(hits, 60, 0.95) > 1e-4
    assert hits >= 49


def test_intervals_repeat_with_their_seed():
    first, again, other = (
        measure_agreement(RATINGS, PREDICTIONS, num_resamples=50, seed=seed).intervals for seed in (1, 1, 2)
    )
    assert first == again != other


def test_system_level_compares_means_of_systems():
    systems = ["b", "a", "b", "a", "c"]
    assert average_by_system(systems, RATINGS) == {"a": 3.0, "b": 1.5, "c": 5.0}
    agreement = measure_system_agreement(systems, RATINGS, PREDICTIONS)
    assert agreement.count == 3
    assert agreement.mse == pytest.approx(((3 - 2.75) ** 2 + (1.5 - 1.25) ** 2 + 0.5**2) / 3)


def test_published_system_ratings_replace_the_means_of_the_listed_clips():
    agreement = measure_system_agreement(
        ["a", "a", "b", "c"], [1, 2, 3, 4], [1, 2, 3, 4], system_ratings={"a": 4.5, "z": 1.0}
    )
    assert agreement.mse == pytest.approx(9 / 3)
    assert agreement.count == 3


def test_values_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        measure_agreement([1, 2], [1])
    with pytest.raises(ValueError, match="must be finite"):
        measure_agreement([1, 2], [1, math.nan])
