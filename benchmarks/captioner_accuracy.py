"""Measures how often the measured captioner is right about rendered music, whose tempo, key and instruments are known.

    python -m benchmarks.captioner_accuracy corpus/manifest.jsonl --split test --output captioner_accuracy.json

Each hit rate stands beside the rate of the same measurements held against another clip's facts, and beside the rate
of the clips whose caption says it, because it is clear. Only clean clips are measured.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.refine.captioner import (
    MIN_KEY_MARGIN,
    MIN_TEMPO_CLARITY,
    Measurements,
    describe_measurements,
    measure,
)
from qamdt.audio import SAMPLING_RATE, read_audio
from qamdt.manifest import Record, read_manifest, resolve_clip_path
from qamdt.tempo_and_key import normalize_key, relative_key


TEMPO_TOLERANCE = 0.04


def is_tempo(found_bpm: float, true_bpm: float, factors: tuple[float, ...] = (1,)) -> bool:
    return any(abs(found_bpm / (factor * true_bpm) - 1) <= TEMPO_TOLERANCE for factor in factors)


CHECKS = {
    "tempo": lambda found, tags: is_tempo(found.tempo_bpm, tags["tempo_bpm"]),
    "tempo, or half or double": lambda found, tags: is_tempo(found.tempo_bpm, tags["tempo_bpm"], (0.5, 1, 2)),
    "key": lambda found, tags: normalize_key(found.key) == normalize_key(tags["key"]),
    "key, or its relative": lambda found, tags: (
        normalize_key(found.key) in (normalize_key(tags["key"]), relative_key(tags["key"]))
    ),
}


def is_said(name: str, found: Measurements) -> bool:
    """Whether the captioner says the tempo or the key."""
    return found.tempo_clarity >= MIN_TEMPO_CLARITY if name.startswith("tempo") else found.key_margin >= MIN_KEY_MARGIN


def summarize(clips: list[tuple[Record, Measurements]]) -> dict:
    """Shares of clips for which each check holds: of all, of those that are said, and with the next clip's facts."""
    summary = {}
    for name, check in CHECKS.items():
        known = [(record.tags, found) for record, found in clips if record.tags["key"] or name.startswith("tempo")]
        others = [tags for tags, _ in known[1:] + known[:1]]
        hits = np.array([check(found, tags) for tags, found in known])
        said = np.array([is_said(name, found) for _, found in known])
        exchanged = [check(found, other) for (_, found), other in zip(known, others, strict=True)]
        summary[name] = {
            "clips": len(known),
            "share": float(hits.mean()),
            "share_with_another_clip": float(np.mean(exchanged)),
            "said": int(said.sum()),
            "share_where_said": float(hits[said].mean()) if said.any() else None,
        }
    called_percussive = [record for record, found in clips if "percussive" in str(describe_measurements(found))]
    with_drums = [record for record in called_percussive if any("drums" in n for n in record.tags["instruments"])]
    summary["called percussive"] = {"clips": len(called_percussive), "of_them_with_drums": len(with_drums)}
    return summary


def format_summary(summary: dict) -> str:
    lines = [
        "| measured | clips | right | right about another clip | said | right where said |",
        "|---|---|---|---|---|---|",
    ]
    for name in CHECKS:
        values = summary[name]
        where_said = "" if values["share_where_said"] is None else f"{values['share_where_said']:.1%}"
        lines.append(
            f"| {name} | {values['clips']} | {values['share']:.1%} | {values['share_with_another_clip']:.1%} "
            f"| {values['said']} | {where_said} |"
        )
    percussive = summary["called percussive"]
    lines += ["", f"Called percussive: {percussive['clips']} clips, {percussive['of_them_with_drums']} with drums."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="manifest of a rendered corpus")
    parser.add_argument("--split", help="only clips whose tag `split` has this value")
    parser.add_argument("--output", help="JSON file for the summary and every clip")
    arguments = parser.parse_args(argv)
    records = [
        record
        for record in read_manifest(arguments.manifest)
        if not record.tags["degradation"] and arguments.split in (None, record.tags["split"])
    ]
    if not records:
        sys.exit(f"error: {arguments.manifest} has no clean clip of the split {arguments.split!r}.")
    clips = []
    for record in tqdm(records, unit="clip"):
        waveform = read_audio(
            resolve_clip_path(arguments.manifest, record),
            start_in_s=record.start_in_s,
            duration_in_s=record.duration_in_s,
        )
        clips.append((record, measure(waveform.numpy(), SAMPLING_RATE)))
    summary = summarize(clips)
    if arguments.output:
        rows = [{"id": record.id, "tags": record.tags, "measured": asdict(found)} for record, found in clips]
        Path(arguments.output).write_text(json.dumps({"summary": summary, "clips": rows}, indent=2), encoding="utf-8")
    print(format_summary(summary))


if __name__ == "__main__":
    main()
