"""The figures of an evaluation against closed forms, and against other people's code where that is installed."""

from itertools import combinations

import numpy as np
import pytest
import scipy.linalg

from pipelines.evaluation.class_scores import class_divergences, inception_score
from pipelines.evaluation.distances import (
    frechet_audio_distance,
    frechet_audio_distance_infinity,
    frechet_distance,
    kernel_audio_distance,
    median_distance,
)
from pipelines.evaluation.distribution import distance_figures, memorising_figures, same_size
from pipelines.evaluation.intervals import collection_figure, mean_figure
from pipelines.evaluation.neighbours import measure_neighbourhood, nearest


def draw(count, size=4, *, seed=0, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, size=(count, size))


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    generator = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(generator.normal(size=(16, 16)))
    deviations, others = generator.uniform(0.1, 3, size=(2, 16))
    mean, other_mean = generator.normal(size=(2, 16))
    covariance, other = (rotation @ np.diag(values**2) @ rotation.T for values in (deviations, others))
    expected = ((mean - other_mean) ** 2).sum() + ((deviations - others) ** 2).sum()
    assert frechet_distance(mean, covariance, other_mean, other) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_covariances_that_do_not_commute_is_that_of_the_matrix_root():
    first, second = (np.cov(draw(50, 6, seed=seed).T) for seed in (1, 2))
    root = scipy.linalg.sqrtm(first @ second).real
    expected = np.trace(first + second - 2 * root)
    assert frechet_distance(np.zeros(6), first, np.zeros(6), second) == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_bears_fewer_clips_than_dimensions():
    few, others = draw(5, 32, seed=0), draw(7, 32, seed=1)
    assert frechet_audio_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_audio_distance(few, others) == pytest.approx(frechet_audio_distance(others, few), abs=1e-6)
    assert frechet_audio_distance(few, others) > 1


def test_extrapolation_takes_most_of_the_bias_of_few_clips_away():
    plain, extrapolated = [], []
    for seed in range(5):
        sides = draw(200, 16, seed=2 * seed), draw(200, 16, seed=2 * seed + 1)
        plain.append(frechet_audio_distance(*sides))
        extrapolated.append(frechet_audio_distance_infinity(*sides)[0])
    assert abs(np.mean(extrapolated)) < 0.2 * np.mean(plain)  # the two are of one distribution: the truth is 0


def test_kernel_distance_of_halves_is_zero_on_average_over_all_splits():
    clips = draw(8, 3)
    values = []
    for half in combinations(range(8), 4):
        rest = [i for i in range(8) if i not in half]
        values.append(kernel_audio_distance(clips[list(half)], clips[rest], bandwidth=1.3))
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    assert min(values) < 0 < max(values)


def test_kernel_distance_of_two_points_each_is_the_closed_form():
    first, second = np.array([[0.0], [0.0]]), np.array([[2.0], [2.0]])
    expected = 2 - 2 * np.exp(-(2.0**2) / (2 * 1.5**2))
    assert kernel_audio_distance(first, second, bandwidth=1.5, scale=1) == pytest.approx(expected, abs=1e-12)


def test_kernel_distance_is_the_mean_over_all_pairs():
    first, second = draw(6, seed=0), draw(9, seed=1, shift=0.5)
    width = median_distance(second)

    def kernel(a, b):
        return np.exp(-((a - b) ** 2).sum() / (2 * width**2))

    within = [np.mean([kernel(*pair) for pair in combinations(side, 2)]) for side in (first, second)]
    between = np.mean([kernel(a, b) for a in first for b in second])
    assert kernel_audio_distance(first, second) == pytest.approx(100 * (sum(within) - 2 * between), abs=1e-9)


def test_inception_score_lies_between_one_and_the_number_of_classes():
    sure = 50.0 * np.eye(5)[np.arange(20) % 5]
    assert inception_score(sure) == pytest.approx(5)
    assert inception_score(np.tile(sure[:1], (20, 1))) == pytest.approx(1)
    assert inception_score(np.zeros((20, 5))) == pytest.approx(1)


def test_divergence_of_classes_is_the_closed_form():
    logits, reference = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    first = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    np.testing.assert_allclose(class_divergences(logits, reference), [first, 0], atol=1e-12)
    assert np.isfinite(class_divergences(np.array([[900.0, -900.0]]), np.array([[-900.0, 900.0]]))).all()


def test_neighbourhoods_of_hand_placed_clips():
    reference = np.array([[0.0], [1.0], [10.0], [11.0]])  # each has its neighbour at distance 1
    clips = np.array([[0.5], [0.6], [50.0]])
    found = measure_neighbourhood(clips, reference, num_neighbours=1)
    np.testing.assert_array_equal(found.precision, [1, 1, 0])
    np.testing.assert_array_equal(found.density, [2, 2, 0])
    np.testing.assert_array_equal(found.coverage, [1, 1, 0, 0])
    # The ball around 50 reaches to 0.6, and takes all but 0 in; those around the others have a radius of 0.1.
    np.testing.assert_array_equal(found.recall, [0, 1, 1, 1])


def test_nearest_training_clip_is_found_whatever_its_loudness():
    training = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    similarities, places = nearest(np.array([[0.0, 3.0], [2.0, 2.1]]), training)
    assert places.tolist() == [1, 2]
    assert similarities[0] == pytest.approx(1)


def test_a_copied_training_clip_stands_out_from_held_out_music():
    training, held_out, generated = (draw(200, 16, seed=seed) for seed in (0, 1, 2))
    generated[:30] = training[:30] + 1e-3
    report = memorising_figures(generated, training, held_out)
    assert report["beyond_held_out_99"].value == pytest.approx(0.16, abs=0.02)
    assert all(own == theirs < 30 for own, theirs, _ in report["most_similar"])
    clean = memorising_figures(draw(200, 16, seed=3), training, held_out)
    assert clean["beyond_held_out_99"].value < 0.05


def test_real_against_real_in_the_same_number_tells_bias_from_distance():
    reference, like, unlike = (draw(80, 8, seed=seed, shift=shift) for seed, shift in ((0, 0), (1, 0), (2, 0.7)))
    near, far = (same_size(frechet_audio_distance, clips, reference) for clips in (like, unlike))
    assert near["clips"] == near["rest"] == 40
    assert near["generated"] == pytest.approx(near["real"], rel=0.25)
    assert far["generated"] > 1.5 * far["real"]
    assert far["real"] == pytest.approx(near["real"])  # the draws are the same


def test_order_of_clips_changes_no_distance():
    generated, reference = draw(40, 6, seed=0), draw(50, 6, seed=1)
    shuffled = generated[np.random.default_rng(0).permutation(40)]
    for measure in (frechet_audio_distance, kernel_audio_distance):
        assert measure(shuffled, reference) == pytest.approx(measure(generated, reference), abs=1e-9)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(60):
        low, high = mean_figure(np.random.default_rng(seed).random(50), num_resamples=300).interval
        hits += low < 0.5 < high
    assert 50 <= hits <= 60
    figure = collection_figure(lambda rows: rows.mean(), np.arange(100.0)[:, None], count=100)
    assert figure.interval[1] - figure.interval[0] == pytest.approx(2 * 1.96 * np.arange(100).std() / 10, rel=0.3)
    assert mean_figure([3.0]).interval is None


def test_all_distances_of_one_collection_against_itself_and_another():
    reference, other = draw(40, 5, seed=0), draw(40, 5, seed=1, shift=3)
    own = distance_figures(reference, reference, ("fad", "kad", "prdc"), num_resamples=0)
    far = distance_figures(other, reference, ("fad", "kad", "prdc"), num_resamples=0)
    assert own["FAD"]["figure"].value == pytest.approx(0, abs=1e-6)
    assert far["FAD"]["figure"].value > 1
    assert own["KAD"]["figure"].value < far["KAD"]["figure"].value
    for name in ("precision", "recall", "coverage"):
        assert own[name]["figure"].value == 1
        assert far[name]["figure"].value < 0.3


@pytest.mark.parametrize(("clips", "word"), [(np.zeros((1, 3)), "two clips"), (np.full((4, 3), np.nan), "finite")])
def test_one_clip_and_embeddings_that_are_not_finite_are_refused(clips, word):
    for measure in (frechet_audio_distance, kernel_audio_distance):
        with pytest.raises(ValueError, match=word):
            measure(clips, draw(5, 3))


@pytest.mark.parametrize("package", ["torch_fidelity", "torchmetrics", "prdc"])
def test_distances_are_those_of_other_packages(package):
    """None of them is installed for development, see docs/evaluation.md; where one is, it is asked."""
    pytest.importorskip(package)
    generated, reference = draw(60, 8, seed=0), draw(50, 8, seed=1, shift=0.3)
    if package == "prdc":
        from prdc import compute_prdc

        expected = compute_prdc(reference, generated, nearest_k=5)
        found = measure_neighbourhood(generated, reference)
        for name, value in expected.items():
            assert getattr(found, name).mean() == pytest.approx(value)
        return
    means = generated.mean(axis=0), reference.mean(axis=0)
    covariances = np.cov(generated.T), np.cov(reference.T)
    if package == "torch_fidelity":
        from torch_fidelity.metric_fid import fid_statistics_to_metric

        statistics = [{"mu": mean, "sigma": sigma} for mean, sigma in zip(means, covariances, strict=True)]
        expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    else:
        import torch
        from torchmetrics.image.fid import _compute_fid

        tensors = [torch.from_numpy(array) for array in (means[0], covariances[0], means[1], covariances[1])]
        expected = float(_compute_fid(*tensors))
    assert frechet_audio_distance(generated, reference) == pytest.approx(expected, abs=1e-6)
