"""Measures clips one by one, in this process or in several, and keeps every result under a key of all it depends on.

A clip is known by the content of its file, so results survive when a folder is moved, and a clip that is changed is
measured again. Clips are heard one at a time: no result depends on what else is measured, in what order or by how many
processes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from pipelines.evaluation.measures import Function, Measure, Measured
from pipelines.evaluation.reconstruction import Reconstruction
from pipelines.evaluation.wanted import Collection, Wanted
from qamdt.audio import read_audio
from qamdt.keyed_rows import FAILED, KeyedRows, make_key, make_row
from whisq.audio import SILENT_PEAK
from whisq.scoring.clips import Clip


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a clip could not be measured."""

    reason: str


Job = tuple[int, Clip, Wanted]
_hear_and_measure: Callable[[Clip, Wanted], Measured | Failure] | None = None  # of a worker process


def measure_clips(
    collection: Collection,
    measure: Measure,
    folder: Path,
    *,
    reconstruction: Reconstruction | None = None,
    num_workers: int = 0,
) -> list[Measured | Failure]:
    """Measures the clips of a collection that are not measured yet, and returns the results of all in their order.

    Args:
        collection: The clips.
        measure: What to measure.
        folder: Folder of the results of earlier runs; those of this one are added.
        reconstruction: What the sound goes through before it is measured; nothing when `None`.
        num_workers: Processes that measure; 0 for this one.
    """
    settings = measure.settings() | ({} if reconstruction is None else {"through": reconstruction.settings()})
    keys = [
        _key(clip, measure.depends_on(wanted), settings)
        for clip, wanted in zip(collection.clips, collection.wanted, strict=True)
    ]
    with KeyedRows(folder, measure.name) as rows:
        jobs = _missing(collection, keys, rows)
        results = _run(jobs, measure, reconstruction, num_workers)
        for (key, clip, _), result in tqdm(
            zip(jobs, results, strict=True), total=len(jobs), desc=measure.name, unit="clip", disable=not jobs or None
        ):
            failure = result.reason if isinstance(result, Failure) else None
            rows.append(make_row(key, clip.id, failure=failure) | ({} if failure else {"measured": result}))
        rows.refresh()
        return [_find(rows, key, clip) for key, clip in zip(keys, collection.clips, strict=True)]


def _missing(collection: Collection, keys: Sequence[int | None], rows: KeyedRows) -> list[Job]:
    """The clips without a result, each sound once."""
    jobs = {}
    for key, clip, wanted in zip(keys, collection.clips, collection.wanted, strict=True):
        if key is not None and rows.status(key) is None:
            jobs.setdefault(key, (key, clip, wanted))
    return list(jobs.values())


def _find(rows: KeyedRows, key: int | None, clip: Clip) -> Measured | Failure:
    if key is None:
        return Failure(reason=f"there is no file {str(clip.path)!r}")
    row = rows.read(key)
    return Failure(reason=row["reason"]) if row["status"] == FAILED else row["measured"]


def _key(clip: Clip, wanted: object, settings: dict) -> int | None:
    """What a result depends on; `None` where there is no file."""
    try:
        with clip.path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return None
    return make_key(content, clip.start_in_s, clip.duration_in_s, wanted, settings)


def _run(
    jobs: Sequence[Job], measure: Measure, reconstruction: Reconstruction | None, num_workers: int
) -> Iterator[Measured | Failure]:
    """Yields the results of jobs in their order."""
    if not jobs:
        return
    if not num_workers:
        hear_and_measure = _load(measure, reconstruction)
        for _, clip, wanted in jobs:
            yield hear_and_measure(clip, wanted)
        return
    # A fresh interpreter: forking a process that has used threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(num_workers, len(jobs)), context, initializer=_start_worker, initargs=(measure, reconstruction)
    ) as pool:
        yield from pool.map(_work, jobs, chunksize=4)


def _start_worker(measure: Measure, reconstruction: Reconstruction | None) -> None:
    global _hear_and_measure
    torch.set_num_threads(1)
    _hear_and_measure = _load(measure, reconstruction)


def _work(job: Job) -> Measured | Failure:
    _, clip, wanted = job
    return _hear_and_measure(clip, wanted)


def _load(measure: Measure, reconstruction: Reconstruction | None) -> Callable[[Clip, Wanted], Measured | Failure]:
    function: Function = measure.load()
    change = None if reconstruction is None else reconstruction.load()

    def hear_and_measure(clip: Clip, wanted: Wanted) -> Measured | Failure:
        try:
            samples, sampling_rate = hear(clip)
            if change is not None:
                samples, sampling_rate = change(samples, sampling_rate)
            return function(samples, sampling_rate, wanted)
        except (OSError, ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
            return Failure(reason=str(error) or type(error).__name__)

    return hear_and_measure


def hear(clip: Clip) -> tuple[np.ndarray, int]:
    """Reads a clip as mono samples `(samples,)` at the rate of its file, which is returned too.

    Raises:
        ValueError: It cannot be read, is empty or silent, or has samples that are not finite.
    """
    try:
        sampling_rate = soundfile.info(str(clip.path)).samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"the file cannot be read: {error}") from error
    samples = read_audio(
        clip.path, sampling_rate, start_in_s=clip.start_in_s, duration_in_s=clip.duration_in_s
    ).numpy()
    if np.abs(samples).max() < SILENT_PEAK:
        raise ValueError("the audio is silent")
    return samples, sampling_rate
