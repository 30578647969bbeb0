"""Whether clips are what was asked for: quality, tempo, key, beats, chords and instrument.

Each hit rate stands beside the rate that the same clips reach with their requests exchanged. All functions take pairs
of what was wanted and what was measured (`pipelines.evaluation.measures`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pipelines.evaluation.measures import Measured
from pipelines.evaluation.wanted import Wanted, asked_score
from qamdt import tempo_and_key


TEMPO_TOLERANCE = 0.04
# What high quality should do to each measure, against low quality.
EXPECTED_SIGN = {"bandwidth_hz": +1, "rolloff_hz": +1, "noise_floor_db": -1, "overall_quality": +1}

Measurement = tuple[Wanted, Measured]


def best_of_pairs(clips: Sequence[Measurement]) -> list[Measurement]:
    """Keeps of clips that differ in quality alone those that were asked to sound best."""
    return [clips[place] for place in best_places([wanted for wanted, _ in clips])]


def best_places(wanted: Sequence[Wanted]) -> list[int]:
    """Where clips are that no other of their pair was asked to sound better than."""
    best: dict[str, float] = {}
    for some in wanted:
        best[some.pair] = max(best.get(some.pair, -np.inf), _score(some))
    return [place for place, some in enumerate(wanted) if _score(some) == best[some.pair]]


def _score(wanted: Wanted) -> float:
    score = asked_score(wanted.quality)
    return -np.inf if score is None else score


def worst_and_best(clips: Sequence[Measurement]) -> list[tuple[Measured, Measured]]:
    """Of clips that differ in quality alone, those that were asked to sound worst and best, in the order of names."""
    groups: dict[str, list[Measurement]] = {}
    for wanted, measured in clips:
        if asked_score(wanted.quality) is not None:
            groups.setdefault(wanted.pair, []).append((wanted, measured))
    ends = []
    for pair in sorted(groups):
        group = sorted(groups[pair], key=lambda clip: _score(clip[0]))
        if _score(group[0][0]) < _score(group[-1][0]):
            ends.append((group[0][1], group[-1][1]))
    return ends


def quality_summary(clips: Sequence[Measurement]) -> dict[str, dict[str, Any]]:
    """In how many pairs each measure moves as expected, and two of them on balance; `p_value` is of a sign test."""
    ends = worst_and_best(clips)
    names = [name for name in EXPECTED_SIGN if ends and all(name in low and name in high for low, high in ends)]
    differences = {name: np.array([high[name] - low[name] for low, high in ends]) for name in names}
    signs = {name: np.sign(EXPECTED_SIGN[name] * values).astype(int) for name, values in differences.items()}
    if {"bandwidth_hz", "noise_floor_db"} <= signs.keys():
        # Noise raises the rolloff that a low-pass filter lowers; the other two agree on what is better.
        signs["bandwidth and noise floor"] = np.sign(signs["bandwidth_hz"] + signs["noise_floor_db"])
    summary = {}
    for name, values in signs.items():
        as_expected, opposite = int((values == 1).sum()), int((values == -1).sum())
        summary[name] = {
            "pairs": len(ends),
            "as_expected": as_expected,
            "opposite": opposite,
            "p_value": binomtest(as_expected, max(as_expected + opposite, 1), alternative="greater").pvalue,
        }
        if name in differences:
            summary[name]["median_difference"] = float(np.median(differences[name]))
    return summary


def is_tempo(found_bpm: float, wanted_bpm: float, *factors: float) -> bool:
    """Whether a tempo is one of the multiples of the tempo wanted, within 4 %."""
    return any(abs(found_bpm / (factor * wanted_bpm) - 1) <= TEMPO_TOLERANCE for factor in factors)


def key_weight(found: str, wanted: str) -> float:
    """MIREX's credit for a key: 1 if it is right, 0.5 a fifth above, 0.3 for the relative, 0.2 for the parallel one."""
    from mir_eval.key import weighted_score

    return float(weighted_score(tempo_and_key.normalize_key(wanted), tempo_and_key.normalize_key(found)))


def can_weight_keys() -> bool:
    """Whether `mir_eval` is installed, which knows the weights."""
    return importlib.util.find_spec("mir_eval") is not None


def is_key(found: str, wanted: str) -> bool:
    return tempo_and_key.normalize_key(found) == tempo_and_key.normalize_key(wanted)


def is_key_or_relative(found: str, wanted: str) -> bool:
    return is_key(found, wanted) or is_key(found, tempo_and_key.relative_key(wanted))


# For each hit rate what was wanted, what was measured, and whether the one is the other.
HITS: dict[str, tuple[str, Callable[[Any, Any], float]]] = {
    "tempo": ("tempo_bpm", lambda found, wanted: is_tempo(found, wanted, 1)),
    "tempo, or half or double": ("tempo_bpm", lambda found, wanted: is_tempo(found, wanted, 0.5, 1, 2)),
    "key": ("key", is_key),
    "key, or its relative": ("key", is_key_or_relative),
    "key, weighted as MIREX does": ("key", key_weight),
}


def hit_values(clips: Sequence[Measurement], name: str) -> tuple[list[float], list[float]]:
    """Whether each clip is as it was asked to be, and the mean of the same with the requests of all others.

    Args:
        clips: Clips; those that were not asked for it are passed over.
        name: One of `HITS`.
    """
    field, is_hit = HITS[name]
    if is_hit is key_weight and not can_weight_keys():
        return [], []
    facts = [(getattr(wanted, field), measured[field]) for wanted, measured in clips if getattr(wanted, field)]
    hits = [float(is_hit(found, wanted)) for wanted, found in facts]
    exchanged = [
        float(np.mean([is_hit(found, wanted) for other, (wanted, _) in enumerate(facts) if other != place]))
        for place, (_, found) in enumerate(facts)
        if len(facts) > 1
    ]
    return hits, exchanged


def hit_summary(clips: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """Shares of the clips of best quality whose measured tempo and key are the ones asked for, and exchanged."""
    summary = {}
    for name in HITS:
        hits, exchanged = hit_values(best_of_pairs(clips), name)
        if exchanged:
            summary[name] = {
                "clips": len(hits),
                "share": float(np.mean(hits)),
                "share_with_prompts_exchanged": float(np.mean(exchanged)),
            }
    return summary


def chord_matches(clips: Sequence[Measurement]) -> np.ndarray:
    """Likeness to the chords asked for, moved up by 0 to 11 semitones, of the clips that have any: `(clips, 12)`."""
    matches = np.array([measured["chord_match"] for _, measured in clips if "chord_match" in measured])
    return matches[np.isfinite(matches).all(axis=1)] if len(matches) else np.zeros((0, 12))


def music_summary(clips: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """Means over the clips of best quality of what is heard where it was asked for."""
    clips = best_of_pairs(clips)
    summary = {}
    for name in ("beat_contrast", "metre_contrast"):
        if values := [measured[name] for _, measured in clips if name in measured]:
            above_0 = float(np.mean(np.array(values) > 0))
            summary[name] = {"clips": len(values), "mean": float(np.mean(values)), "above_0": above_0}
    if len(matches := chord_matches(clips)):
        summary["chords"] = {
            "clips": len(matches),
            "cosine_above_shifted": float((matches[:, 0] - matches[:, 1:].mean(axis=1)).mean()),
            "above_all_shifted": float((matches.argmax(axis=1) == 0).mean()),
        }
    return summary


def instrument_summary(clips: Sequence[Measurement]) -> dict[str, float]:
    """Timbre distances between clips of one and of different instruments, and leave-one-out recognition.

    A clip is recognised when, of the instruments' mean timbres, each taken without the clip itself, its own is nearest.
    """
    labelled = [(w.instrument, np.array(m["timbre"])) for w, m in best_of_pairs(clips) if w.instrument]
    counts = {name: sum(label == name for label, _ in labelled) for name, _ in labelled}
    labelled = [(name, features) for name, features in labelled if counts[name] > 1]
    if len({name for name, _ in labelled}) < 2:
        return {}

    distances: dict[bool, list[float]] = {True: [], False: []}
    for (name, features), (other_name, other_features) in combinations(labelled, 2):
        distances[name == other_name].append(np.abs(features - other_features).mean())

    num_recognised = 0
    for index, (name, features) in enumerate(labelled):
        others = labelled[:index] + labelled[index + 1 :]
        means = {label: np.mean([f for n, f in others if n == label], axis=0) for label, _ in others}
        num_recognised += name == min(means, key=lambda label: np.abs(means[label] - features).mean())
    return {
        "clips": len(labelled),
        "distance_within_db": float(np.mean(distances[True])),
        "distance_between_db": float(np.mean(distances[False])),
        "recognised": num_recognised / len(labelled),
        "chance": 1 / len({name for name, _ in labelled}),
    }
