"""Makes one folder of encoded music of what several jobs have encoded: `encode_latents --shard i/n`."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from data_prep.latent_update import Encoding, EncodingOptions, EncodingReport, list_notes, shard_path
from qamdt.files import claim, read_json
from qamdt.latent_folder import INDEX_NAME


def merge_latents(out: Path, parts: Sequence[Path] = ()) -> EncodingReport | None:
    """Writes the index of a folder when all shards of a job are done; done again, it changes nothing.

    Args:
        out: The folder.
        parts: Other folders into which shards were written; their files are copied.

    Returns:
        What the folder has; `None` where it was merged before.

    Raises:
        ValueError: A shard is missing, or was made with other settings or of another manifest, or clips have changed.
        RuntimeError: A job still writes to the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    with claim(out / ".lock"):
        for part in parts:
            _copy_shards(part, out)
        notes = [path for path in list_notes(out) if path.suffix == ".json"]
        if not notes:
            if (out / INDEX_NAME).is_file():
                return None
            raise FileNotFoundError(
                f"no shard of {str(out)!r} is done; make them with `python -m data_prep.encode_latents --shard`."
            )
        job, errors = _read_notes(out, notes)
        run = Encoding(Path(job["manifest"]), out, EncodingOptions(**job["options"]), PartialState())
        run.errors = errors
        if _without_path(run.describe_job()) != _without_path(job):
            raise ValueError(
                "the manifest, the autoencoder or the text encoder has changed since the shards were made."
            )
        _check_is_whole(run)
        report = run.finish()
        for path in list_notes(out):
            path.unlink()
        return report


def _copy_shards(part: Path, out: Path) -> None:
    """Copies shards and notes of another folder; their names say what is in them."""
    found = [path for pattern in ("latents-*", "text-*", "shard-*-of-*.json") for path in part.glob(pattern)]
    if not found:
        raise FileNotFoundError(f"{str(part)!r} holds nothing that `encode_latents --shard` wrote.")
    for path in found:
        if not (out / path.name).is_file():
            temporary = out / f".{path.name}.{os.getpid()}.tmp"
            shutil.copyfile(path, temporary)
            os.replace(temporary, out / path.name)


def _read_notes(out: Path, notes: Sequence[Path]) -> tuple[dict[str, Any], dict[int, str]]:
    """Returns what the shards have in common, and what could not be encoded."""
    counts = sorted({int(path.stem.split("-")[3]) for path in notes})
    if len(counts) > 1:
        raise ValueError(
            f"the shards are of jobs of {counts} parts; remove the notes (shard-*.json) of the other job."
        )
    missing = [number for number in range(counts[0]) if shard_path(out, (number, counts[0]), ".json") not in notes]
    if missing:
        raise ValueError(f"shard {missing[0]}/{counts[0]} is missing or has not finished; run its command (again).")
    job, errors = None, {}
    for path in notes:
        note = read_json(path)
        errors |= {int(key, 16): reason for key, reason in note.pop("errors")}
        if job is not None and _without_path(note) != _without_path(job):
            differing = sorted(name for name in job if note.get(name) != job[name])
            raise ValueError(f"{str(path)!r} was made with other settings than {notes[0].name}: {differing}.")
        job = note
    return job, errors


def _without_path(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if name != "manifest"}


def _check_is_whole(run: Encoding) -> None:
    is_missing = np.ones(len(run.records), bool)
    is_missing[run.find_clips().positions] = False
    failed = np.array(list(run.errors), np.uint64)
    unknown = np.flatnonzero(is_missing & ~run.is_gone & ~np.isin(run.keys, failed))
    if len(unknown) or not run.is_text_kept.all():
        raise ValueError(
            f"{len(unknown)} clips and {int((~run.is_text_kept).sum())} texts are not there, though all shards are done: "
            "audio has changed, or files were removed; run `encode_latents` without `--shard`, which encodes them."
        )
