"""Makes degraded versions of the clean clips of a manifest, each with its full-reference quality score.

    python -m data_prep.degrade_corpus corpus/manifest.jsonl degraded --versions 2 --num-workers 2

writes `degraded/manifest.jsonl` and `degraded/audio/*.flac`: what a scorer of quality learns from, and what it is
tested on. With `--kinds` some degradations can be kept for the test; with `--produce-share` a clean clip first gets
another sound (`data_prep/productions.py`) and is scored against that. The result depends on the settings alone, not
on the number of processes; an interrupted run is taken up where it stopped. A version is made again when its clean
clip or a setting that decides about it has changed; what the clean manifest says (captions, tags) is taken from it anew.
"""

import argparse
import functools
import multiprocessing
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.degradation_score import FRAME_RATE, SCORER, degradation_mos
from data_prep.degradations import KINDS, Degradation, degrade, draw_degradation
from data_prep.productions import produce
from data_prep.structure_damage import DEFAULT_BAR_IN_S, STRUCTURE_KINDS, STRUCTURE_SCORES, break_structure
from qamdt.audio import SAMPLING_RATE, normalize_waveform, read_audio, write_audio
from qamdt.keyed_rows import KeyedRows, file_identity, make_key, make_row
from qamdt.manifest import Record, clip_identity, resolve_clip_path, scan_manifest, write_manifest
from qamdt.outputs import check_output, check_output_folder


@dataclass(frozen=True, kw_only=True)
class DegradeSettings:
    """What determines the degraded versions of a clip.

    Args:
        versions: Versions of each clip.
        kinds: The degradations to draw from.
        clean_share: Share of the versions that stay clean (score 5).
        second_share: Share of the degraded versions that are degraded twice, by different kinds.
        produce_share: Share of the versions that first get another clean sound.
        structure_share: Share of the versions that lose their structure instead (`data_prep/structure_damage.py`).
        seed: Seed of everything.
    """

    versions: int = 2
    kinds: tuple[str, ...] = KINDS
    clean_share: float = 0.15
    second_share: float = 0.2
    produce_share: float = 0.7
    structure_share: float = 0.0
    seed: int = 0

    def __post_init__(self):
        unknown = set(self.kinds) - set(KINDS)
        if unknown or not self.kinds:
            raise ValueError(f"`kinds` must be some of {KINDS}, got {self.kinds}.")
        if self.versions < 1:
            raise ValueError(f"`versions` must be at least 1, got {self.versions}.")
        for name in ("clean_share", "second_share", "produce_share", "structure_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must lie between 0 and 1, got {getattr(self, name)}.")


def version_key(manifest: Path, record: Record, version: int, settings: DegradeSettings) -> int:
    """Returns the key of a version, which changes with the clean sound and with the settings that decide about it."""
    decides = asdict(settings) | {"versions": version}
    if not settings.structure_share:
        del decides["structure_share"]  # so that what was made before there was such a share is found
    return make_key(record.id, clip_identity(manifest, record), decides)


def degrade_clip(
    manifest: Path, record: Record, versions: Sequence[int], folder: Path, settings: DegradeSettings
) -> list[dict[str, Any]]:
    """Writes versions of one clean clip and returns what became of them.

    Args:
        manifest: The manifest of the clean clip.
        record: The clean clip.
        versions: Numbers of the versions.
        folder: Folder of the new corpus.
        settings: What to make.
    """
    path = resolve_clip_path(manifest, record)
    clean = read_audio(path, start_in_s=record.start_in_s, duration_in_s=record.duration_in_s)
    clean = normalize_waveform(clean).numpy()  # leaves room for noise
    return [_write_version(record, clean, version, folder, settings) for version in versions]


def _write_version(
    record: Record, clean: np.ndarray, version: int, folder: Path, settings: DegradeSettings
) -> dict[str, Any]:
    """One version: perhaps another production, then no, one or two degradations, then the score against the production."""
    generator = np.random.default_rng([settings.seed, zlib.crc32(record.id.encode()), version])
    reference = produce(clean, SAMPLING_RATE, generator) if generator.random() < settings.produce_share else clean
    degradations = _draw(generator, settings)
    degraded = reference
    for degradation in degradations:
        degraded = degrade(degraded, SAMPLING_RATE, degradation)
    score, frames = degradation_mos(reference, degraded, SAMPLING_RATE)
    structure_generator = np.random.default_rng([settings.seed, zlib.crc32(record.id.encode()), version, 1])
    broken = structure_generator.random() < settings.structure_share
    if broken:
        kind, seed = str(structure_generator.choice(STRUCTURE_KINDS)), int(structure_generator.integers(2**31))
        degraded = break_structure(reference, SAMPLING_RATE, kind, bar_in_s=bar_length(record), seed=seed)
        score, frames = STRUCTURE_SCORES[kind], np.full(len(frames), STRUCTURE_SCORES[kind])

    path = _version_path(record, version)
    if ".." in PurePosixPath(path).parts:
        raise ValueError(f"the id {record.id!r} would name a file outside the folder; rename the clip.")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)  # ids may have slashes
    write_audio(folder / path, degraded, SAMPLING_RATE)
    return {
        "path": path,
        "file": file_identity(folder / path),
        "degradation": [{"kind": kind}] if broken else [asdict(damage) for damage in degradations] or None,
        "quality_score": round(score, 3),
        "quality_frames": [round(float(value), 2) for value in frames],
    }


def bar_length(record: Record) -> float:
    """The length of a bar of a clip in seconds, by its tempo and metre; two seconds where they are not known."""
    beats = record.time_signature.split("/")[0] if record.time_signature else record.tags.get("beats_per_bar")
    tempo = record.tempo_bpm or record.tags.get("tempo_bpm")
    try:
        return 60 * float(beats) / float(tempo)
    except (TypeError, ValueError, ZeroDivisionError):
        return DEFAULT_BAR_IN_S


def _describe_version(record: Record, version: int, made: dict[str, Any]) -> Record:
    """The record of a version: what is said about its clean clip today, and what was made of it."""
    return replace(
        record,
        id=f"{record.id}-v{version}",
        path=made["path"],
        start_in_s=0.0,
        tags=record.tags | {"degradation": made["degradation"]},
        quality_score=made["quality_score"],
        quality_frames=tuple(made["quality_frames"]),
        quality_frame_rate=FRAME_RATE,
        quality_scorer=SCORER,
    )


def _version_path(record: Record, version: int) -> str:
    return f"audio/{record.id}-v{version}.flac"


def _draw(generator: np.random.Generator, settings: DegradeSettings) -> list[Degradation]:
    """Draws no, one or two degradations of the allowed kinds."""
    if generator.random() < settings.clean_share:
        return []
    count = 2 if len(settings.kinds) > 1 and generator.random() < settings.second_share else 1
    drawn: dict[str, Degradation] = {}
    while len(drawn) < count:
        degradation = draw_degradation(generator)
        if degradation.kind in settings.kinds:
            drawn.setdefault(degradation.kind, degradation)
    return list(drawn.values())


def degrade_corpus(
    manifest: str | Path,
    folder: str | Path,
    *,
    settings: DegradeSettings | None = None,
    split: str | None = None,
    num_clips: int | None = None,
    num_workers: int = 1,
) -> tuple[Path, Counter, list[str]]:
    """Degrades the clean clips of a manifest: those that are not done yet, and those that were other clips or settings.

    Args:
        manifest: The clean clips; clips whose tag `degradation` is set are passed over.
        folder: Folder of the new corpus; made if it does not exist.
        settings: What to make.
        split: Take only clips whose tag `split` has this value.
        num_clips: Take only so many, evenly spread over the manifest.
        num_workers: Number of processes.

    Returns:
        The path of the new manifest, how many versions were "kept" and "made", and a line about each clip, or line of
        the manifest, that could not be read.
    """
    settings = settings or DegradeSettings()
    manifest, folder = Path(manifest), Path(folder)
    failures: list[str] = []
    out = folder / "manifest.jsonl"
    is_ours = (folder / "progress.jsonl").is_file()
    check_output(out, inputs=[manifest], is_ours=lambda path: is_ours)
    check_output_folder(folder, ["audio/*"], is_ours=is_ours)
    records = _choose_clips(manifest, split, num_clips, failures)
    _check_versions(manifest, records, folder, settings.versions)
    with KeyedRows(folder, "progress") as rows:
        keys = {
            record.id: [version_key(manifest, record, version, settings) for version in range(settings.versions)]
            for record in records
        }
        jobs = [
            (record, missing)
            for record in records
            if (missing := [v for v, key in enumerate(keys[record.id]) if not _is_made(rows, key, folder)])
        ]
        outcomes = _degrade_all(manifest, jobs, folder, settings, num_workers)
        num_made = 0
        versions = tqdm(zip(jobs, outcomes, strict=True), total=len(jobs), unit="clip", disable=None)
        for (record, missing), (made, error) in versions:
            if error:
                failures.append(f"{record.id}: {error}")
            for version, values in zip(missing, made, strict=not error):
                rows.append(make_row(keys[record.id][version], f"{record.id}-v{version}") | values)
                num_made += 1
        rows.refresh()
        versions = [
            _describe_version(record, version, rows.read(key))
            for record in records
            for version, key in enumerate(keys[record.id])
            if _is_made(rows, key, folder)
        ]
        write_manifest(out, versions)
    return out, Counter(kept=len(versions) - num_made, made=num_made), failures


def _check_versions(manifest: Path, records: list[Record], folder: Path, num_versions: int) -> None:
    """Refuses versions that would lie where a clean clip does, in a folder that holds both."""
    clean = {os.path.realpath(manifest.parent / record.path): record.id for record in records}
    for record in records:
        for version in range(num_versions):
            path = folder / _version_path(record, version)
            if (clip := clean.get(os.path.realpath(path))) is not None:
                raise ValueError(
                    f"version {version} of clip {record.id!r} would replace {str(path)!r}, the sound of clip {clip!r}; "
                    "give another folder."
                )


def _choose_clips(manifest: Path, split: str | None, num_clips: int | None, failures: list[str]) -> list[Record]:
    records = []
    for line in scan_manifest(manifest):
        if line.record is None:
            failures.append(f"line {line.number}: {line.fault}")
        elif not line.record.tags.get("degradation") and split in (None, line.record.tags.get("split")):
            records.append(line.record)
    if not records:
        raise ValueError(
            f"`manifest` {str(manifest)!r} has no clean clip" + (f" of split {split!r}." if split else ".")
        )
    if num_clips is None or num_clips >= len(records):
        return records
    return [records[index * len(records) // num_clips] for index in range(num_clips)]


def _is_made(rows: KeyedRows, key: int, folder: Path) -> bool:
    """Whether a version was made, and its file is still what was written then."""
    if rows.status(key) is None:
        return False
    made = rows.read(key)
    path = folder / made["path"]
    return path.is_file() and file_identity(path) == made["file"]


def _degrade_all(
    manifest: Path, jobs: list[tuple[Record, list[int]]], folder: Path, settings: DegradeSettings, num_workers: int
) -> Iterator[tuple[list[dict[str, Any]], str | None]]:
    """Yields what became of the versions of each clip in order, or what was wrong with it."""
    job = functools.partial(_try_to_degrade, manifest=manifest, folder=folder, settings=settings)
    if num_workers == 1 or not jobs:
        yield from map(job, jobs)
        return
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as executor:
        yield from executor.map(job, jobs, chunksize=4)


def _try_to_degrade(
    job: tuple[Record, list[int]], manifest: Path, folder: Path, settings: DegradeSettings
) -> tuple[list[dict[str, Any]], str | None]:
    try:
        return degrade_clip(manifest, *job, folder, settings), None
    except (ValueError, OSError) as error:
        return [], str(error)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.degrade_corpus", description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="manifest of the clean clips")
    parser.add_argument("folder", type=Path, help="where the degraded clips go")
    parser.add_argument("--versions", type=int, default=2, help="versions of each clip (%(default)s)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), metavar="KIND", help="kinds to draw from (all)")
    parser.add_argument("--clean-share", type=float, default=0.15, help="versions that stay clean (%(default)s)")
    parser.add_argument("--second-share", type=float, default=0.2, help="versions degraded twice (%(default)s)")
    parser.add_argument("--produce-share", type=float, default=0.7, help="versions of another sound (%(default)s)")
    parser.add_argument(
        "--structure-share",
        type=float,
        default=0.0,
        help="versions without structure: drones, smears, bars (%(default)s)",
    )
    parser.add_argument("--split", help="only clips whose tag `split` has this value")
    parser.add_argument("--num-clips", type=int, help="only so many clips, evenly spread")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=1, help="number of processes (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        settings = DegradeSettings(
            versions=arguments.versions,
            kinds=tuple(arguments.kinds),
            clean_share=arguments.clean_share,
            second_share=arguments.second_share,
            produce_share=arguments.produce_share,
            structure_share=arguments.structure_share,
            seed=arguments.seed,
        )
        manifest, counts, failures = degrade_corpus(
            arguments.manifest,
            arguments.folder,
            settings=settings,
            split=arguments.split,
            num_clips=arguments.num_clips,
            num_workers=arguments.num_workers,
        )
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {manifest}: {counts['kept']} versions kept, {counts['made']} made")
    if failures:
        sys.exit(f"{len(failures)} clips could not be degraded:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
