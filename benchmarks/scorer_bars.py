"""What the embedded scorer can tell apart, on music, sounds and damage that it was not trained on.

    python -m benchmarks.scorer_bars --held-out held/manifest.jsonl --real real/manifest.jsonl

Reads manifests that `data_prep.degrade_corpus` wrote, so that the quality of every clip is known from its clean
original, and prints:

- overall quality: rank correlation with the full-reference score, over all clips and for each kind of damage;
- quality along a clip: how often the damaged half of a half-damaged clip scores below the clean half;
- text alignment: how often a clip's own caption scores above that of a clip with other instruments and another style,
  and the rank correlation of alignment with truth, before and after the prompts are shuffled;
- structure: how often clean music scores above the same music as a drone, a smear, one bar over and over, and with its
  bars in another order (`data_prep.structure_damage`), with the mean scores; `--structure` takes a manifest of clean
  clips alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

from data_prep.degrade_corpus import bar_length
from data_prep.structure_damage import STRUCTURE_KINDS, break_structure
from qamdt.audio import SAMPLING_RATE, read_audio
from qamdt.manifest import Record, read_manifest
from whisq.scorer import ClipScore, WhisQScorer


MIN_CONTRAST = 0.5  # difference of the halves, in points of the full-reference score, from which they are compared


def score_clips(scorer: WhisQScorer, root: Path, records: list[Record], prompts: list[str | None]) -> list[ClipScore]:
    """Scores clips in batches of 16."""
    scores = []
    for start in tqdm(range(0, len(records), 16), unit="batch"):
        batch = records[start : start + 16]
        waveforms = [read_audio(root / record.path, start_in_s=record.start_in_s) for record in batch]
        scores += scorer.score(waveforms, SAMPLING_RATE, prompts[start : start + 16])
    return scores


def kind_of(record: Record) -> str:
    """The kinds of damage of a clip, joined; "clean" without."""
    degradations = record.tags.get("degradation") or []
    degradations = [degradations] if isinstance(degradations, dict) else degradations
    return "+".join(sorted(degradation["kind"] for degradation in degradations)) or "clean"


def rank_correlation(first: list[float], second: list[float]) -> float | None:
    """Spearman's coefficient; `None` for fewer than eight clips."""
    return round(float(stats.spearmanr(first, second).statistic), 3) if len(first) >= 8 else None


def quality_report(records: list[Record], scores: list[ClipScore]) -> dict:
    """Rank correlations of overall quality, over all clips and by kind."""
    kinds = {}
    for record, score in zip(records, scores, strict=True):
        if "+" not in (kind := kind_of(record)):
            kinds.setdefault(kind, []).append((record.quality_score, score.overall_quality))
    return {
        "num_clips": len(records),
        "spearman": rank_correlation([r.quality_score for r in records], [s.overall_quality for s in scores]),
        "spearman_by_kind": {
            kind: rank_correlation(*zip(*pairs, strict=True))
            for kind, pairs in sorted(kinds.items())
            if kind != "clean"
        },
        "mean_score_by_kind": {
            kind: [round(float(np.mean(values)), 2) for values in zip(*pairs, strict=True)]
            for kind, pairs in sorted(kinds.items())
        },
    }


def halves_report(records: list[Record], scores: list[ClipScore]) -> dict:
    """How often the half that was damaged more also scores lower, leaving out the middle fifth of the clip."""
    outcomes = []
    for record, score in zip(records, scores, strict=True):
        truth = _halves(np.array(record.quality_frames))
        if abs(truth[0] - truth[1]) >= MIN_CONTRAST:
            heard = _halves(np.array(score.frame_overall_quality))
            outcomes.append((truth[0] > truth[1]) == (heard[0] > heard[1]))
    return {"num_clips": len(outcomes), "share_right": round(float(np.mean(outcomes)), 3) if outcomes else None}


def _halves(curve: np.ndarray) -> tuple[float, float]:
    return float(curve[: int(0.4 * len(curve))].mean()), float(curve[int(np.ceil(0.6 * len(curve))) :].mean())


def alignment_report(scorer: WhisQScorer, root: Path, records: list[Record], generator: np.random.Generator) -> dict:
    """Own caption against that of a clip that shares neither style nor instruments; then with prompts shuffled."""
    own, foreign = [], []
    for record in records:
        others = [other for other in records if _is_foreign(record, other)]
        own.append(record.captions[generator.integers(len(record.captions))])
        captions = others[generator.integers(len(others))].captions
        foreign.append(captions[generator.integers(len(captions))])
    matched = [score.text_alignment for score in score_clips(scorer, root, records, own)]
    mismatched = [score.text_alignment for score in score_clips(scorer, root, records, foreign)]

    prompts, truth = own + foreign, [1.0] * len(own) + [0.0] * len(foreign)
    order = generator.permutation(len(prompts))
    shuffled = score_clips(scorer, root, records + records, [prompts[index] for index in order])
    return {
        "num_clips": len(records),
        "matched_above_mismatched": round(float(np.mean(np.array(matched) > np.array(mismatched))), 3),
        "mean_matched": round(float(np.mean(matched)), 2),
        "mean_mismatched": round(float(np.mean(mismatched)), 2),
        "spearman_with_truth": rank_correlation(matched + mismatched, truth),
        "spearman_with_truth_prompts_shuffled": rank_correlation([s.text_alignment for s in shuffled], truth),
    }


def _is_foreign(record: Record, other: Record) -> bool:
    shared = set(record.tags["instruments"]) & set(other.tags["instruments"])
    return not shared and record.tags["style"] != other.tags["style"]


def structure_report(scorer: WhisQScorer, root: Path, records: list[Record]) -> dict:
    """How often clean clips score above what is left of them without structure."""
    originals = score_clips(scorer, root, records, [None] * len(records))
    report: dict = {"num_clips": len(records), "mean_original": _mean_quality(originals)}
    for kind in STRUCTURE_KINDS:
        broken = [
            break_structure(
                read_audio(
                    root / record.path, start_in_s=record.start_in_s, duration_in_s=record.duration_in_s
                ).numpy(),
                SAMPLING_RATE,
                kind,
                bar_in_s=bar_length(record),
            )
            for record in records
        ]
        scores = [
            score
            for start in range(0, len(broken), 16)
            for score in scorer.score(broken[start : start + 16], SAMPLING_RATE)
        ]
        is_above = [own.overall_quality > other.overall_quality for own, other in zip(originals, scores, strict=True)]
        report[kind] = {"original_above": round(float(np.mean(is_above)), 3), "mean": _mean_quality(scores)}
    return report


def _mean_quality(scores: list[ClipScore]) -> float:
    return round(float(np.mean([score.overall_quality for score in scores])), 2)


def main(argv: list[str] | None = None) -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", help="folder or Hub id (the embedded scorer)")
    parser.add_argument("--held-out", type=Path, help="manifest of rendered, captioned clips and their degradations")
    parser.add_argument("--real", type=Path, help="manifest of real recordings and their degradations")
    parser.add_argument("--structure", type=Path, help="manifest of clean clips")
    parser.add_argument("--max-clips", type=int, default=400, help="of each manifest (%(default)s)")
    parser.add_argument("--max-alignment-clips", type=int, default=200, help="of --held-out (%(default)s)")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args(argv)
    if not (arguments.held_out or arguments.real or arguments.structure):
        parser.error("give --held-out, --real or --structure")
    scorer = WhisQScorer.from_pretrained(arguments.scorer)

    result = {"scorer": scorer.name}
    for name, manifest in (("held_out", arguments.held_out), ("real", arguments.real)):
        if manifest is None:
            continue
        records = list(read_manifest(manifest))[: arguments.max_clips]
        scores = score_clips(scorer, manifest.parent, records, [None] * len(records))
        result[name] = {"quality": quality_report(records, scores), "halves": halves_report(records, scores)}
        captioned = [record for record in records if record.captions][: arguments.max_alignment_clips]
        if captioned:
            generator = np.random.default_rng(0)
            result[name]["alignment"] = alignment_report(scorer, manifest.parent, captioned, generator)
    if arguments.structure is not None:
        clean = [record for record in read_manifest(arguments.structure) if kind_of(record) == "clean"]
        result["structure"] = structure_report(scorer, arguments.structure.parent, clean[: arguments.max_clips])
    print(json.dumps(result, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
