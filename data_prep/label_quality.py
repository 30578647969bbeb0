"""Joins the scores of `whisq score` to a manifest, so that music can be encoded with its quality.

    whisq score corpus/manifest.jsonl -o scores.jsonl
    whisq stats scores.jsonl -o stats.json
    python -m data_prep.label_quality --manifest corpus/manifest.jsonl --scores scores.jsonl --stats stats.json \\
        --out corpus/labelled.jsonl
    python -m data_prep.encode_latents --manifest corpus/labelled.jsonl

Every record gets the score of its clip and the curve along it, and for the reader's eye level and prefix; the
thresholds go to `labelled.quality.json`, where the encoder finds them. Latents of the same clips are kept. More music that is labelled later with the same `--stats` has the same levels.
Records whose clip has no score, or one of another sound than today's, lose the quality they may have had from another scorer, and lines that describe no clip
are left out; both are counted, listed in `labelled.unlabelled.jsonl`, and make the exit status 1.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from qamdt.files import encode_json_line, replacing
from qamdt.manifest import Record, scan_manifest, write_manifest
from qamdt.outputs import check_output
from qamdt.quality import QualityStats, is_quality_file
from whisq.cli import add_threshold_options, read_thresholds
from whisq.scoring.labels import judged_scores
from whisq.scoring.rows import ScoreRows, is_of_this_sound
from whisq.scoring.stats import ScoreStats, Thresholds, measure_scores


# What labelling adds to a record beside the fields that every reader of manifests knows.
ADDED_FIELDS = ("quality_level", "quality_prefix", "text_alignment", "quality_flags")


def label_manifest(
    manifest: str | Path,
    scores: Sequence[str | Path],
    out: str | Path,
    *,
    stats: ScoreStats | None = None,
    method: str | None = None,
    thresholds: Thresholds | None = None,
    per_source: bool = False,
) -> int:
    """Writes a labelled manifest with its thresholds and returns the number of clips without score.

    A line of the manifest that describes no clip counts too; the labelled one goes without it.

    Args:
        manifest: The manifest whose clips were scored.
        scores: Files of `whisq score`.
        out: Manifest to write, in the folder of `manifest`, because paths in it are relative to that.
        stats: Statistics that the levels follow from; those of `scores` when `None`.
        method: "sigma" or "quantile"; the one that the statistics name when `None`.
        thresholds: Thresholds between the levels instead of derived ones.
        per_source: Whether clips are compared with their source: scores are standardized by source before they become
            `quality_score`, and the scorer's name says so.
    """
    manifest, out = Path(manifest), Path(out)
    if out.resolve().parent != manifest.resolve().parent:
        raise ValueError(f"`out` must lie beside the manifest {str(manifest)!r}, got {str(out)!r}.")
    quality_path, unlabelled_path = out.with_suffix(".quality.json"), out.with_suffix(".unlabelled.jsonl")
    was_labelled = is_quality_file(quality_path)
    for path in (out, quality_path, unlabelled_path):
        check_output(path, inputs=[manifest, *scores], is_ours=lambda path: was_labelled)
    stats = stats or measure_scores(scores)
    quality_stats = stats.quality_stats(method=method, thresholds=thresholds, per_source=per_source)
    rows = ScoreRows(scores)
    num_unlabelled = 0

    def label_all(unlabelled: IO[bytes]) -> Iterator[Record]:
        nonlocal num_unlabelled
        for line in tqdm(scan_manifest(manifest), desc="labels", unit="clip", disable=None):
            if line.record is None:
                num_unlabelled += 1
                unlabelled.write(encode_json_line({"line": line.number, "error": line.fault}))
                continue
            record, row = line.record, rows.read(line.record.id)
            error = None
            if row is None or row["status"] != "ok":
                error = "it has no row in the scores" if row is None else row["error"]
            elif not is_of_this_sound(row, manifest, record):
                row, error = None, "its sound has changed since it was scored; run `whisq score` again"
            if error is not None:
                num_unlabelled += 1
                unlabelled.write(encode_json_line({"id": record.id, "path": record.path, "error": error}))
            yield label_record(record, row, stats, quality_stats, per_source=per_source)

    quality_stats.save(quality_path)  # first, as it tells that the manifest beside it is ours
    with replacing(unlabelled_path) as temporary, temporary.open("wb") as unlabelled:
        write_manifest(out, label_all(unlabelled))
    return num_unlabelled


def label_record(
    record: Record, row: dict[str, Any] | None, stats: ScoreStats, quality_stats: QualityStats, *, per_source: bool
) -> Record:
    """Returns a record with the quality that a row of a score file gives it, or with none."""
    kept = {key: value for key, value in record.extra.items() if key not in ADDED_FIELDS}
    if row is None or row["status"] != "ok":
        return replace(
            record, quality_score=None, quality_frames=None, quality_frame_rate=None, quality_scorer=None, extra=kept
        )
    if row["scorer"] != stats.scorer:
        raise ValueError(
            f"clip {record.id!r} was scored by {row['scorer']!r}, and the statistics are of {stats.scorer!r}; "
            "take statistics of the same scorer."
        )
    score, curve = judged_scores(row, stats, per_source=per_source)
    kept |= {"quality_level": quality_stats.level(score), "quality_prefix": quality_stats.prefix(score)}
    if row.get("text_alignment") is not None:
        kept["text_alignment"] = row["text_alignment"]
    if row["flags"]:
        kept["quality_flags"] = row["flags"]
    return replace(
        record,
        quality_score=score,
        quality_frames=tuple(curve),
        quality_frame_rate=1 / row["frame_hop_in_s"],
        quality_scorer=quality_stats.scorer,
        extra=kept,
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="manifest whose clips were scored")
    parser.add_argument("--scores", nargs="+", type=Path, required=True, help="files of `whisq score`")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write, beside the first")
    parser.add_argument("--stats", type=Path, help="file of `whisq stats` (default: measured on the scores)")
    add_threshold_options(parser)
    arguments = parser.parse_args(argv)
    try:
        num_unlabelled = label_manifest(
            arguments.manifest,
            arguments.scores,
            arguments.out,
            stats=None if arguments.stats is None else ScoreStats.load(arguments.stats),
            method=arguments.method,
            thresholds=read_thresholds(arguments),
            per_source=arguments.per_source,
        )
    except (ValueError, OSError, argparse.ArgumentTypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.out} and {arguments.out.with_suffix('.quality.json')}")
    if num_unlabelled:
        listed = arguments.out.with_suffix(".unlabelled.jsonl")
        print(f"{num_unlabelled} clips without score, listed in {listed}.", file=sys.stderr)
    return int(num_unlabelled > 0)


if __name__ == "__main__":
    sys.exit(main())
