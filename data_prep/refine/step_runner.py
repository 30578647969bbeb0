"""Runs the steps that need no network: hearing a clip, aligning its candidates, fusing by rules, checking."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.refine.captioner import caption_by_measuring, caption_by_tags
from data_prep.refine.captioner_model import TransformersCaptioner
from data_prep.refine.fusion_rules import fuse_by_rules
from data_prep.refine.jobs import RULES, Job, RefineSettings, make_fusion_request
from data_prep.refine.outcomes import MEASURED, TAGS, Alignment, Candidate
from data_prep.refine.stages import (
    NO_SURVIVORS,
    Captioner,
    accept_fusion,
    align,
    check_similarity,
    fall_back,
    generate_candidates,
)
from qamdt.audio import read_audio
from qamdt.keyed_rows import FAILED, make_row
from qamdt.manifest import Record, resolve_clip_path
from qamdt.precision import check_device
from whisq.clap import Clap, load_clap


CAPTIONERS: dict[str, Captioner] = {MEASURED: caption_by_measuring, TAGS: caption_by_tags}


class StepRunner:
    """Runs the steps that need no network. It keeps the models, so each process builds one and holds on to it.

    Args:
        manifest: The manifest, to find the audio from.
        settings: Settings of the run.
        device: Where the models compute.
    """

    def __init__(self, manifest: Path, settings: RefineSettings, *, device: str = "cpu"):
        check_device(device)
        self.manifest = manifest
        self.settings = settings
        self.device = device

    @functools.cached_property
    def clap(self) -> Clap:
        """The CLAP model, loaded when it is first needed."""
        return load_clap(self.settings.clap, device=self.device)

    @functools.cached_property
    def captioners(self) -> list[Captioner]:
        """The captioners, loaded when they are first needed."""
        return [
            CAPTIONERS.get(name) or TransformersCaptioner.from_pretrained(name, device=self.device)
            for name in self.settings.captioners
        ]

    def run(self, step: str, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Runs a step for some clips and returns the rows to store; a clip that cannot be done has a failed row."""
        if step == "generate":
            return self._generate(jobs)
        work = {"align": self._align, "fuse": self._fuse, "check": self._check}[step]
        rows = []
        for job in jobs:
            try:
                rows.append(make_row(job.key, job.record.id) | work(job))
            except (ValueError, OSError) as error:
                rows.append(make_row(job.key, job.record.id, failure=str(error)))
        return rows

    def _generate(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Stage 1, and the embeddings of the audio for stage 2, all at once."""
        rows, waveforms = [], []
        sampling_rate = self.clap.sampling_rate
        for job in jobs:
            try:
                waveform = self._read_audio(job.record)
                candidates = generate_candidates(job.record, waveform, sampling_rate, self.captioners)
            except (ValueError, OSError) as error:
                rows.append(make_row(job.key, job.record.id, failure=str(error)))
                continue
            texts = [[candidate.text, candidate.source] for candidate in candidates]
            rows.append(make_row(job.key, job.record.id) | {"candidates": texts})
            waveforms.append(waveform)
        embeddings = iter(self.clap.embed_audio(waveforms, sampling_rate) if waveforms else ())
        return [
            row if row["status"] == FAILED else row | {"audio_embedding": _encode_embedding(next(embeddings))}
            for row in rows
        ]

    def _read_audio(self, record: Record) -> np.ndarray:
        """Reads the samples of a clip `(samples,)`."""
        path = resolve_clip_path(self.manifest, record)
        return read_audio(
            path, self.clap.sampling_rate, start_in_s=record.start_in_s, duration_in_s=record.duration_in_s
        ).numpy()

    def _align(self, job: Job) -> dict[str, Any]:
        """Stage 2."""
        found = [*job.inputs["generate"]["candidates"], *job.inputs.get("suggest", {}).get("candidates", ())]
        candidates = [Candidate(text, source) for text, source in found]
        embedding = read_embedding(job.inputs["generate"])
        alignment = align(job.record, candidates, embedding, self.clap, self.settings.thresholds)
        return {"alignment": asdict(alignment)}

    def _fuse(self, job: Job) -> dict[str, Any]:
        """Stage 3 by rules."""
        request = make_fusion_request(job, self.settings)
        return {"fuser": RULES, "answer": dict(fuse_by_rules(request)) if request.has_survivors else None}

    def _check(self, job: Job) -> dict[str, Any]:
        """The checks of stage 3, and the similarity of what stands."""
        alignment = Alignment.from_dict(job.inputs["align"]["alignment"])
        request = make_fusion_request(job, self.settings)
        answer = job.inputs["fuse"]["answer"]
        fusion = fall_back(request, [NO_SURVIVORS]) if answer is None else accept_fusion(request, answer)
        embedding = read_embedding(job.inputs["generate"])
        fusion = check_similarity(fusion, alignment, embedding, self.clap, self.settings.thresholds)
        return {"fusion": asdict(fusion)}


def read_embedding(row: dict[str, Any]) -> np.ndarray:
    """Returns the audio embedding `(E,)` that a row of step `generate` holds."""
    return np.frombuffer(base64.b64decode(row["audio_embedding"]), np.float16).astype(np.float32)


def _encode_embedding(embedding: np.ndarray) -> str:
    return base64.b64encode(embedding.astype(np.float16).tobytes()).decode()
