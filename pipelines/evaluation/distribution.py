"""Figures of whole collections, each beside what real music reaches against other real music in the same number.

Distances shrink as collections grow, so a figure alone says little. `same_size` draws clips of the reference in place
of generated ones: both are held against the same rest, in the same number, and the mean over the draws is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from pipelines.evaluation.class_scores import class_divergences, inception_score
from pipelines.evaluation.distances import (
    frechet_audio_distance,
    frechet_audio_distance_infinity,
    kernel_audio_distance,
    median_distance,
)
from pipelines.evaluation.intervals import NUM_RESAMPLES, Figure, collection_figure, mean_figure
from pipelines.evaluation.neighbours import NUM_NEIGHBOURS, measure_neighbourhood, nearest


NUM_DRAWS = 5
NUM_PAIRS_SHOWN = 10
Distance = Callable[[np.ndarray, np.ndarray], float]


def distance_figures(
    generated: np.ndarray,
    reference: np.ndarray,
    metrics: Sequence[str],
    *,
    reconstructed: np.ndarray | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """FAD, FAD-infinity, KAD, precision, recall, density and coverage of generated clips.

    Args:
        generated: Their embeddings `(clips, size)`.
        reference: Those of real music.
        metrics: Some of "fad", "kad" and "prdc".
        reconstructed: Those of the reference clips after an autoencoder, in the order of `reference`.
        num_resamples: Bootstrap resamples for the intervals; none when 0.
        seed: Seed of everything drawn.

    Returns:
        For each figure its `figure`, number of reference clips, and `same_size`, where there are clips enough.
    """
    figures: dict[str, dict[str, Any]] = {}
    compared: dict[str, Distance] = {}
    resample = partial(collection_figure, count=len(generated), num_resamples=num_resamples, seed=seed)
    if "fad" in metrics:
        compared["FAD"] = frechet_audio_distance
        figures["FAD"] = {"figure": resample(frechet_audio_distance, generated, reference)}
        value, fit = frechet_audio_distance_infinity(generated, reference, seed=seed)
        figures["FAD-infinity"] = {
            "figure": Figure(value=value, interval=None, count=len(generated)),
            "explained_variance": fit,
        }
    if "kad" in metrics:
        bandwidth = median_distance(reference)
        compared["KAD"] = partial(kernel_audio_distance, bandwidth=bandwidth)
        figures["KAD"] = {"figure": resample(compared["KAD"], generated, reference), "bandwidth": bandwidth}
    if "prdc" in metrics:
        neighbourhood = measure_neighbourhood(generated, reference)
        for name in ("precision", "recall", "density", "coverage"):
            compared[name] = partial(_mean_of_neighbourhood, name)
            figures[name] = {"figure": mean_figure(getattr(neighbourhood, name), seed=seed)}
    for name, distance in compared.items():
        if (same := same_size(distance, generated, reference, reconstructed=reconstructed, seed=seed)) is not None:
            figures[name]["same_size"] = same
    return {name: values | {"reference_clips": len(reference)} for name, values in figures.items()}


def _mean_of_neighbourhood(name: str, generated: np.ndarray, reference: np.ndarray) -> float:
    return float(getattr(measure_neighbourhood(generated, reference), name).mean())


def same_size(
    distance: Distance,
    generated: np.ndarray,
    reference: np.ndarray,
    *,
    reconstructed: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Compares generated and real clips in the same number with the rest of the real ones.

    Returns:
        Means over `NUM_DRAWS` draws and the number of clips; `None` where halves of the reference, or the generated
        clips, are too few.
    """
    count = min(len(generated), len(reference) // 2)
    if count <= NUM_NEIGHBOURS:
        return None
    generator = np.random.default_rng(seed)
    values: dict[str, list[float]] = {"generated": [], "real": []}
    for _ in range(NUM_DRAWS):
        order = generator.permutation(len(reference))
        drawn, rest = order[:count], reference[order[count:]]
        values["generated"].append(distance(generated[generator.permutation(len(generated))[:count]], rest))
        values["real"].append(distance(reference[drawn], rest))
        if reconstructed is not None:
            values.setdefault("reconstructed", []).append(distance(reconstructed[drawn], rest))
    means = {name: float(np.mean(draws)) for name, draws in values.items()}
    spreads = {f"{name}_sd": float(np.std(draws, ddof=1)) for name, draws in values.items()}
    return means | spreads | {"clips": count, "rest": len(reference) - count, "draws": NUM_DRAWS}


def class_figures(
    logits: np.ndarray,
    reference_logits: np.ndarray | None,
    pairs: Sequence[tuple[int, int]],
    metrics: Sequence[str],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Inception score, and divergence of classes from those of the reference clip that has the same prompt.

    Args:
        logits: Of generated clips, `(clips, classes)`.
        reference_logits: Of reference clips.
        pairs: Which generated clip belongs to which reference clip.
        metrics: Some of "is" and "kl".
        num_resamples: Bootstrap resamples for the interval of the inception score.
        seed: Seed of the resampling.
    """
    figures: dict[str, dict[str, Any]] = {}
    if "is" in metrics:
        figure = collection_figure(inception_score, logits, count=len(logits), num_resamples=num_resamples, seed=seed)
        figures["IS"] = {"figure": figure}
        if reference_logits is not None:
            figures["IS"] |= {"real": inception_score(reference_logits), "reference_clips": len(reference_logits)}
    if "kl" in metrics and pairs:
        own, partners = (np.array(places) for places in zip(*pairs, strict=True))
        divergences = class_divergences(logits[own], reference_logits[partners])
        figures["KL"] = {"figure": mean_figure(divergences, seed=seed), "reference_clips": len(pairs)}
        if len(pairs) > 1:
            exchanged = class_divergences(logits[own], reference_logits[np.roll(partners, 1)])
            figures["KL"]["exchanged"] = float(exchanged.mean())
    return figures


def memorising_figures(
    generated: np.ndarray, training: np.ndarray, held_out: np.ndarray | None, *, seed: int = 0
) -> dict[str, Any]:
    """Whether generated clips lie nearer to training clips than held-out music does.

    Args:
        generated: Embeddings of generated clips.
        training: Those of training clips.
        held_out: Those of music of the same kind that was not trained on.
        seed: Seed of the intervals.

    Returns:
        `similarity` to the nearest training clip, the same of held-out clips and the share of generated clips beyond
        their 99th percentile (1 % if nothing is remembered), and the most similar pairs by their numbers.
    """
    similarities, places = nearest(generated, training)
    order = np.argsort(-similarities)[:NUM_PAIRS_SHOWN]
    report: dict[str, Any] = {
        "figure": mean_figure(similarities, seed=seed),
        "training_clips": len(training),
        "percentiles": _percentiles(similarities),
        "most_similar": [(int(i), int(places[i]), float(similarities[i])) for i in order],
    }
    if held_out is not None:
        theirs, _ = nearest(held_out, training)
        report["held_out"] = {"mean": float(theirs.mean()), "clips": len(theirs), "percentiles": _percentiles(theirs)}
        limit = float(np.percentile(theirs, 99))
        report["beyond_held_out_99"] = mean_figure(similarities > limit, seed=seed)
        report["limit"] = limit
    return report


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"{q}": float(np.percentile(values, q)) for q in (5, 50, 95, 99)}
