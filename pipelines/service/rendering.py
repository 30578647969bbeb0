"""Jobs as clients see them, by the Generative Media Spec."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.clips import record_path
from pipelines.media_spec import OUTPUT_FORMATS
from pipelines.service.generation_queue import GenerationQueue
from pipelines.service.jobs import Job
from qamdt.files import read_json


MEDIA_TYPES = {suffix: media_type for media_type, suffix in OUTPUT_FORMATS.items()} | {".json": "application/json"}


def render_job(job: Job, queue: GenerationQueue, base_url: str) -> dict[str, Any]:
    """A job as JSON has it, with addresses that begin with `base_url`."""
    started, finished = job.started_at, job.finished_at
    return {
        "id": job.id,
        "model": queue.engine.model_id,
        "revision": None,
        "status": job.status,
        "position": queue.position(job),
        "created_at": _timestamp(job.created_at),
        "progress": render_progress(job),
        "outputs": _outputs(job, queue, base_url) if job.status == "complete" else None,
        "expires_at": _timestamp(queue.expires_at(job)),
        "seed": job.requests[0].seed if job.status == "complete" else None,
        "usage": {"compute_seconds": round(finished - started, 2)} if job.status == "complete" else None,
        "error": job.error,
    }


def render_progress(job: Job) -> dict[str, Any] | None:
    """How far a job is."""
    if job.status != "generating" or job.progress is None:
        return None
    done, total = job.progress
    return {"step": done, "total_steps": total, "fraction": round(done / total, 4)}


def file_names(job: Job) -> list[str]:
    """What a job may be asked for: sound files, the record of each, and the recording that it begins with."""
    recordings = [] if job.recording is None else [job.recording]
    return [name for file in job.files for name in (file, record_path(Path(file)).name)] + recordings


def _outputs(job: Job, queue: GenerationQueue, base_url: str) -> dict[str, list[dict[str, Any]]]:
    folder = queue.jobs.place(job)
    audios = []
    for file in job.files:
        record = read_json(record_path(folder / file))
        output = {"media_type": MEDIA_TYPES[job.suffix], "seed": record["settings"]["seed"], **record["sound"]}
        output |= {"warnings": record["warnings"]} if "warnings" in record else {}
        if job.response_format == "b64_json":
            output["base64"] = base64.b64encode((folder / file).read_bytes()).decode()
        else:
            place = f"{base_url}v1/generations/{job.id}/files"
            output |= {"url": f"{place}/{file}", "record_url": f"{place}/{record_path(Path(file)).name}"}
        audios.append(output)
    return {"audio": audios}


def _timestamp(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
