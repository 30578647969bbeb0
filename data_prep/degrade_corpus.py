"""Makes degraded versions of the clean clips of a manifest, each with its full-reference quality score.

    python -m data_prep.degrade_corpus corpus/manifest.jsonl degraded --versions 2 --num-workers 2

writes `degraded/manifest.jsonl` and `degraded/audio/*.flac`: what a scorer of quality learns from, and what it is
tested on. With `--kinds` some degradations can be kept for the test; with `--produce-share` a clean clip first gets
another sound (`data_prep/productions.py`) and is scored against that. The result depends on the settings alone, not
on the number of processes; an interrupted run is taken up where it stopped.
"""

import argparse
import functools
import json
import multiprocessing
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.degradation_score import FRAME_RATE, SCORER, degradation_mos
from data_prep.degradations import KINDS, Degradation, degrade, draw_degradation
from data_prep.productions import produce
from data_prep.progress import read_progress
from qamdt.audio import SAMPLING_RATE, normalize_waveform, read_audio, write_audio
from qamdt.manifest import Record, read_manifest, write_manifest


@dataclass(frozen=True, kw_only=True)
class DegradeSettings:
    """What determines the degraded versions of a clip.

    Args:
        versions: Versions of each clip.
        kinds: The degradations to draw from.
        clean_share: Share of the versions that stay clean (score 5).
        second_share: Share of the degraded versions that are degraded twice, by different kinds.
        produce_share: Share of the versions that first get another clean sound.
        seed: Seed of everything.
    """

    versions: int = 2
    kinds: tuple[str, ...] = KINDS
    clean_share: float = 0.15
    second_share: float = 0.2
    produce_share: float = 0.7
    seed: int = 0

    def __post_init__(self):
        unknown = set(self.kinds) - set(KINDS)
        if unknown or not self.kinds:
            raise ValueError(f"`kinds` must be some of {KINDS}, got {self.kinds}.")
        if self.versions < 1:
            raise ValueError(f"`versions` must be at least 1, got {self.versions}.")
        for name in ("clean_share", "second_share", "produce_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must lie between 0 and 1, got {getattr(self, name)}.")


def degrade_clip(record: Record, root: Path, folder: Path, settings: DegradeSettings) -> list[Record]:
    """Writes the versions of one clean clip and returns their records.

    Args:
        record: The clean clip.
        root: Folder that its path is relative to.
        folder: Folder of the new corpus.
        settings: What to make.
    """
    clean = read_audio(root / record.path, start_in_s=record.start_in_s, duration_in_s=record.duration_in_s)
    clean = normalize_waveform(clean).numpy()  # leaves room for noise
    return [_write_version(record, clean, version, folder, settings) for version in range(settings.versions)]


def _write_version(record: Record, clean: np.ndarray, version: int, folder: Path, settings: DegradeSettings) -> Record:
    """One version: perhaps another production, then no, one or two degradations, then the score against the production."""
    generator = np.random.default_rng([settings.seed, zlib.crc32(record.id.encode()), version])
    reference = produce(clean, SAMPLING_RATE, generator) if generator.random() < settings.produce_share else clean
    degradations = _draw(generator, settings)
    degraded = reference
    for degradation in degradations:
        degraded = degrade(degraded, SAMPLING_RATE, degradation)
    score, frames = degradation_mos(reference, degraded, SAMPLING_RATE)

    clip_id = f"{record.id}-v{version}"
    path = f"audio/{clip_id}.flac"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)  # ids may have slashes
    write_audio(folder / path, degraded, SAMPLING_RATE)
    return replace(
        record,
        id=clip_id,
        path=path,
        start_in_s=0.0,
        tags=record.tags | {"degradation": [asdict(degradation) for degradation in degradations] or None},
        quality_score=round(score, 3),
        quality_frames=tuple(round(float(value), 2) for value in frames),
        quality_frame_rate=FRAME_RATE,
        quality_scorer=SCORER,
    )


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
) -> tuple[Path, list[str]]:
    """Degrades the clean clips of a manifest, or those that are not done yet.

    Args:
        manifest: The clean clips; clips whose tag `degradation` is set are passed over.
        folder: Folder of the new corpus; made if it does not exist.
        settings: What to make.
        split: Take only clips whose tag `split` has this value.
        num_clips: Take only so many, evenly spread over the manifest.
        num_workers: Number of processes.

    Returns:
        The path of the new manifest, and a line about each clip that could not be read.
    """
    settings = settings or DegradeSettings()
    manifest, folder = Path(manifest), Path(folder)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    _check_settings(folder, settings)
    records = [
        record
        for record in read_manifest(manifest)
        if not record.tags.get("degradation") and split in (None, record.tags.get("split"))
    ]
    if not records:
        raise ValueError(
            f"`manifest` {str(manifest)!r} has no clean clip" + (f" of split {split!r}." if split else ".")
        )
    if num_clips is not None and num_clips < len(records):
        records = [records[index * len(records) // num_clips] for index in range(num_clips)]
    finished = read_progress(folder / "progress.jsonl")
    done = {line["id"]: [Record.from_dict(version) for version in line["records"]] for line in finished}
    missing = [record for record in records if record.id not in done]
    failures = []
    with (folder / "progress.jsonl").open("a", encoding="utf-8") as progress:
        outcomes = _degrade_all(missing, manifest.parent, folder, settings, num_workers)
        for record, (versions, error) in tqdm(zip(missing, outcomes, strict=True), total=len(missing), unit="clip"):
            if error:
                failures.append(f"{record.id}: {error}")
                continue
            done[record.id] = versions
            line = {"id": record.id, "records": [version.to_dict() for version in versions]}
            progress.write(json.dumps(line) + "\n")
            progress.flush()
    write_manifest(folder / "manifest.jsonl", (version for record in records for version in done.get(record.id, [])))
    return folder / "manifest.jsonl", failures


def _degrade_all(
    records: list[Record], root: Path, folder: Path, settings: DegradeSettings, num_workers: int
) -> Iterator[tuple[list[Record], str | None]]:
    """Yields the versions of each clip in order, or what was wrong with it."""
    job = functools.partial(_try_to_degrade, root=root, folder=folder, settings=settings)
    if num_workers == 1 or not records:
        yield from map(job, records)
        return
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as executor:
        yield from executor.map(job, records, chunksize=4)


def _try_to_degrade(
    record: Record, root: Path, folder: Path, settings: DegradeSettings
) -> tuple[list[Record], str | None]:
    try:
        return degrade_clip(record, root, folder, settings), None
    except (ValueError, OSError) as error:
        return [], str(error)


def _check_settings(folder: Path, settings: DegradeSettings) -> None:
    """Notes the settings beside the corpus, and refuses to mix two corpora in one folder."""
    path = folder / "settings.json"
    wanted = json.loads(json.dumps(asdict(settings)))
    if not path.is_file():
        path.write_text(json.dumps(wanted, indent=2) + "\n")
    elif (found := json.loads(path.read_text())) != wanted:
        raise ValueError(
            f"`folder` {str(folder)!r} holds a corpus with other settings, {found}; asked for {wanted}. "
            "Choose another folder or the same settings."
        )


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
            seed=arguments.seed,
        )
        manifest, failures = degrade_corpus(
            arguments.manifest,
            arguments.folder,
            settings=settings,
            split=arguments.split,
            num_clips=arguments.num_clips,
            num_workers=arguments.num_workers,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {manifest}")
    if failures:
        sys.exit(f"{len(failures)} clips could not be degraded:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
