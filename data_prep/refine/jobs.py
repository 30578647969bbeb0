"""The four steps of a refinement run as jobs: what each needs, what it makes, and under which key it is stored.

    generate   the clip's audio   →  candidates, CLAP embedding of the audio
    align      those              →  which candidates agree with the audio
    fuse       those              →  the answer of a fuser: rules, or a language model
    check      all of it          →  the caption that stands

The steps are apart because they cost different things (hearing audio, a text encoder, money) and are redone for
different reasons: a new threshold never hears the audio again, and a new check never asks the language model again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.refine.align import Thresholds
from data_prep.refine.captioner import caption_by_measuring, caption_by_tags
from data_prep.refine.captioner_model import TransformersCaptioner
from data_prep.refine.clap import EMBEDDED, Clap, load_clap
from data_prep.refine.fuse import fuse_by_rules
from data_prep.refine.llm_client import ModelConfig
from data_prep.refine.outcomes import MEASURED, TAGS, Alignment, Candidate, FusionRequest
from data_prep.refine.stages import (
    NO_SURVIVORS,
    STAGES_VERSION,
    Captioner,
    accept_fusion,
    align,
    build_fusion_request,
    check_similarity,
    fall_back,
    generate_candidates,
)
from data_prep.refine.store import DONE, FAILED, make_key
from qamdt.audio import read_audio
from qamdt.manifest import Record, resolve_clip_path


STEPS = ("generate", "align", "fuse", "check")
RULES = "rules"
CAPTIONERS: dict[str, Captioner] = {MEASURED: caption_by_measuring, TAGS: caption_by_tags}


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """What decides the outcome of a refinement.

    Args:
        captioners: Who writes candidates besides the clip's own captions: "measured", "tags", or folders and Hub ids of
            models that hear audio and answer in text.
        clap: "embedded", or a folder or Hub id of a CLAP model.
        thresholds: When captions and audio agree; must be there from the second step on.
        num_paraphrases: How many other wordings to write.
        model: The language model that fuses; rules do when `None`.
    """

    captioners: tuple[str, ...] = (MEASURED, TAGS)
    clap: str = EMBEDDED
    thresholds: Thresholds | None = None
    num_paraphrases: int = 2
    model: ModelConfig | None = None

    def __post_init__(self):
        if self.num_paraphrases < 0:
            raise ValueError(f"`num_paraphrases` must not be negative, got {self.num_paraphrases}.")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One step of one clip, with all that it needs.

    Args:
        key: Key of its result.
        record: The clip.
        inputs: Results of the steps before, by step.
    """

    key: int
    record: Record
    inputs: dict[str, dict[str, Any]]

    def to_json(self) -> str:
        """Returns the job as text, for other machines."""
        return json.dumps({"key": self.key, "record": self.record.to_dict(), "inputs": self.inputs})

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Reads what `to_json` wrote."""
        values = json.loads(text)
        return cls(key=values["key"], record=Record.from_dict(values["record"]), inputs=values["inputs"])


def make_keys(record: Record, settings: RefineSettings, clap_name: str, prompt_key: int) -> dict[str, int]:
    """Returns the keys of the steps of a clip, each a digest of all that its result depends on.

    Args:
        record: The clip.
        settings: Settings of the run; without thresholds there are no keys beyond the first step.
        clap_name: Name of the loaded CLAP model, with its version.
        prompt_key: `make_prompt_key()`, which does not depend on the clip.
    """
    clip = [record.id, record.path, record.start_in_s, record.duration_in_s, record.captions, record.tags]
    keys = {"generate": make_key(STAGES_VERSION, clip, settings.captioners, clap_name)}
    if settings.thresholds is not None:
        thresholds = settings.thresholds.to_dict()
        keys["align"] = make_key(keys["generate"], "align", thresholds)
        fuser = settings.model.to_dict() if settings.model else RULES
        keys["fuse"] = make_key(keys["align"], "fuse", fuser, settings.num_paraphrases, prompt_key)
        keys["check"] = make_key(keys["fuse"], "check")
    return keys


def make_prompt_key() -> int:
    """Returns a digest of the prompt: of all words that are the same for each clip, and of the schema."""
    request = FusionRequest(texts=("a", "b"), tags={"style": "c"}, fallback="a", num_paraphrases=2, has_survivors=True)
    return make_key(request.messages, request.json_schema)


class StepRunner:
    """Runs the steps that need no network. It holds the models, so each process builds one and keeps it.

    Args:
        manifest: The manifest, to find the audio from.
        settings: Settings of the run.
        clap: The CLAP model; loaded as the settings say when `None`.
        device: Where a CLAP model that is loaded computes.
    """

    def __init__(self, manifest: Path, settings: RefineSettings, clap: Clap | None = None, *, device: str = "cpu"):
        self.manifest = manifest
        self.settings = settings
        self.clap = clap or load_clap(settings.clap, device=device)
        self._captioners = [
            CAPTIONERS.get(name) or TransformersCaptioner.from_pretrained(name, device=device)
            for name in settings.captioners
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
                candidates = generate_candidates(job.record, waveform, sampling_rate, self._captioners)
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
        candidates = [Candidate(*candidate) for candidate in job.inputs["generate"]["candidates"]]
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


def make_row(key: int, row_id: str, *, failure: str | None = None) -> dict[str, Any]:
    """Returns the part of a row that all steps share."""
    row = {"key": f"{key:016x}", "id": row_id}
    return row | ({"status": DONE} if failure is None else {"status": FAILED, "reason": failure})


def make_fusion_request(job: Job, settings: RefineSettings) -> FusionRequest:
    """Returns what the fuser is asked about a clip."""
    alignment = Alignment.from_dict(job.inputs["align"]["alignment"])
    return build_fusion_request(job.record, alignment, settings.num_paraphrases)


def read_embedding(row: dict[str, Any]) -> np.ndarray:
    """Returns the audio embedding `(E,)` that a row of step `generate` holds."""
    return np.frombuffer(base64.b64decode(row["audio_embedding"]), np.float16).astype(np.float32)


def _encode_embedding(embedding: np.ndarray) -> str:
    return base64.b64encode(embedding.astype(np.float16).tobytes()).decode()
