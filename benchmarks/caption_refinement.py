"""Measures what caption refinement does about wrong captions, planted among the right ones of rendered music.

    python -m benchmarks.caption_refinement --output caption_refinement.json
    python -m benchmarks.caption_refinement --manifest corpus/manifest.jsonl --split test

Each clip has one of its captions; some have that of a clip of another style, mood and instruments instead. The
thresholds are derived from these captions as they are. The first table says what stage 2 removes at the derived
threshold, over many plantings; the second what all three stages make of one planting, by rules: once with captioners
that only hear the audio, once with the tags as well.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.make_sample_corpus import SAMPLE_CORPUS_DIR
from data_prep.refine.captioner import caption_by_measuring, caption_by_tags
from data_prep.refine.outcomes import ORIGINAL, Candidate
from data_prep.refine.stages import align, check_similarity, fuse
from data_prep.refine.thresholds import Thresholds, derive_thresholds
from qamdt.audio import read_audio
from qamdt.manifest import Record, read_manifest, resolve_clip_path
from whisq.clap import EMBEDDED, Clap, load_clap


def is_wrong_for(caption_owner: Record, clip: Record) -> bool:
    """Whether the captions of one clip cannot be true of another: nothing in common that a caption would name."""
    a, b = caption_owner.tags, clip.tags
    have_no_instrument_in_common = not set(a["instruments"]) & set(b["instruments"])
    return a["style"] != b["style"] and a["mood"] != b["mood"] and have_no_instrument_in_common


def plant(records: Sequence[Record], wrong_share: float, seed: int) -> tuple[list[str], np.ndarray]:
    """Draws a caption for each clip, and exchanges a share of them for wrong ones.

    Args:
        records: The clips.
        wrong_share: Share of wrong captions.
        seed: Seed of the draw.

    Returns:
        The captions, and which of them are wrong `(clips,)`.
    """
    generator = np.random.default_rng(seed)
    captions = [record.captions[generator.integers(len(record.captions))] for record in records]
    is_wrong = np.zeros(len(records), dtype=bool)
    is_wrong[generator.permutation(len(records))[: round(wrong_share * len(records))]] = True
    for number in np.flatnonzero(is_wrong):
        owners = [owner for owner in records if is_wrong_for(owner, records[number])]
        owner = owners[generator.integers(len(owners))]
        captions[number] = owner.captions[generator.integers(len(owner.captions))]
    return captions, is_wrong


def measure_removal(
    records: Sequence[Record],
    audio: np.ndarray,
    clap: Clap,
    *,
    wrong_share: float,
    wrong_kept_share: float,
    num_plantings: int,
) -> dict[str, float]:
    """Shares of the wrong and of the right captions that stage 2 removes, over many plantings.

    `auc` is the chance that a right caption is more similar to its audio than a wrong one.
    """
    texts = sorted({caption for record in records for caption in record.captions})
    text_embeddings = dict(zip(texts, clap.embed_text(texts), strict=True))
    removed: dict[str, list[float]] = {"wrong": [], "right": [], "auc": [], "threshold": []}
    for seed in range(num_plantings):
        captions, is_wrong = plant(records, wrong_share, seed)
        embeddings = np.stack([text_embeddings[caption] for caption in captions])
        thresholds = derive_thresholds(audio, embeddings, wrong_kept_share=wrong_kept_share)
        similarities = (audio * embeddings).sum(axis=1)
        is_removed = similarities < thresholds.audio_text
        removed["wrong"].append(float(is_removed[is_wrong].mean()))
        removed["right"].append(float(is_removed[~is_wrong].mean()))
        removed["auc"].append(float((similarities[~is_wrong, None] > similarities[None, is_wrong]).mean()))
        removed["threshold"].append(thresholds.audio_text)
    return {name: float(np.mean(values)) for name, values in removed.items()}


def refine(
    records: Sequence[Record],
    captions: Sequence[str],
    measured: Sequence[list[Candidate]],
    audio: np.ndarray,
    clap: Clap,
    thresholds: Thresholds,
    *,
    with_tags: bool,
) -> dict[str, np.ndarray]:
    """Refines all clips by rules; returns the similarity of each before and after, and which fell back."""
    before, after, fell_back = [], [], []
    for record, caption, heard, embedding in zip(records, captions, measured, audio, strict=True):
        candidates = [Candidate(caption, ORIGINAL), *heard]
        candidates += caption_by_tags(record, None, None) if with_tags else []
        record = Record(
            id=record.id, path=record.path, duration_in_s=record.duration_in_s, tags=record.tags if with_tags else {}
        )
        alignment = align(record, candidates, embedding, clap, thresholds)
        fusion = check_similarity(fuse(record, alignment), alignment, embedding, clap, thresholds)
        before.append(float(clap.embed_text([caption])[0] @ embedding))
        after.append(fusion.similarity)
        fell_back.append(fusion.fell_back)
    return {"before": np.array(before), "after": np.array(after), "fell_back": np.array(fell_back)}


def summarize(outcome: dict[str, np.ndarray], is_wrong: np.ndarray) -> dict[str, float]:
    return {
        "before": float(outcome["before"].mean()),
        "after": float(outcome["after"].mean()),
        "before_where_wrong": float(outcome["before"][is_wrong].mean()),
        "after_where_wrong": float(outcome["after"][is_wrong].mean()),
        "fell_back": float(outcome["fell_back"].mean()),
    }


def format_summary(summary: dict) -> str:
    removal = summary["removal"]
    lines = [
        f"{summary['clips']} clips, {summary['wrong_share']:.0%} of the captions wrong, CLAP {summary['clap']}",
        "",
        "| threshold | wrong captions removed | right captions removed | AUC |",
        "|---|---|---|---|",
        f"| {removal['threshold']:.3f} | {removal['wrong']:.1%} | {removal['right']:.1%} | {removal['auc']:.3f} |",
        "",
        "| captioners | before | after | before, where wrong | after, where wrong | fell back |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in summary["refined"].items():
        lines.append(
            f"| {name} | {values['before']:.3f} | {values['after']:.3f} | {values['before_where_wrong']:.3f} "
            f"| {values['after_where_wrong']:.3f} | {values['fell_back']:.0%} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=SAMPLE_CORPUS_DIR / "manifest.jsonl")
    parser.add_argument("--split", help="only clips whose tag `split` has this value")
    parser.add_argument("--with-degraded", action="store_true", help="degraded clips as well as clean ones")
    parser.add_argument("--clap", default=EMBEDDED, help="folder or Hub id (default: the embedded one)")
    parser.add_argument("--wrong-share", type=float, default=0.2, help="share of planted wrong captions (%(default)s)")
    parser.add_argument("--wrong-kept-share", type=float, default=0.15, help="as in `derive_thresholds` (%(default)s)")
    parser.add_argument("--num-plantings", type=int, default=50, help="for the first table (%(default)s)")
    parser.add_argument("--output", help="JSON file for the summary")
    arguments = parser.parse_args(argv)
    records = [
        record
        for record in read_manifest(arguments.manifest)
        if (arguments.with_degraded or not record.tags["degradation"])
        and arguments.split in (None, record.tags["split"])
    ]
    if not records:
        sys.exit(f"error: {arguments.manifest} has no clip of the split {arguments.split!r}.")

    clap = load_clap(arguments.clap)
    audio, measured = [], []
    for record in tqdm(records, unit="clip"):
        waveform = read_audio(
            resolve_clip_path(arguments.manifest, record),
            clap.sampling_rate,
            start_in_s=record.start_in_s,
            duration_in_s=record.duration_in_s,
        ).numpy()
        audio.append(clap.embed_audio([waveform], clap.sampling_rate)[0])
        measured.append(caption_by_measuring(record, waveform, clap.sampling_rate))
    audio = np.stack(audio)  # (clips, E)

    captions, is_wrong = plant(records, arguments.wrong_share, seed=0)
    embeddings = clap.embed_text(captions)
    thresholds = derive_thresholds(audio, embeddings, wrong_kept_share=arguments.wrong_kept_share)
    refined = {
        name: summarize(refine(records, captions, measured, audio, clap, thresholds, with_tags=with_tags), is_wrong)
        for name, with_tags in (("measured", False), ("measured, tags", True))
    }
    removal = measure_removal(
        records,
        audio,
        clap,
        wrong_share=arguments.wrong_share,
        wrong_kept_share=arguments.wrong_kept_share,
        num_plantings=arguments.num_plantings,
    )
    summary = {
        "clips": len(records),
        "wrong_share": arguments.wrong_share,
        "clap": clap.name,
        "thresholds": thresholds.to_dict(),
        "removal": removal,
        "refined": refined,
    }
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(summary, indent=2), encoding="utf-8")
    print(format_summary(summary))


if __name__ == "__main__":
    main()
