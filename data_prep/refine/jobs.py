"""The steps of a refinement run as jobs: what each needs, what it makes, and under which key it is stored.

    generate   the clip's audio   →  candidates, CLAP embedding of the audio
    suggest    its tags or audio  →  candidates by a language model (only if wanted)
    align      those              →  which candidates agree with the audio
    fuse       those              →  the answer of a fuser: rules, or a language model
    check      all of it          →  the caption that stands

The steps are apart because they cost different things (hearing audio, a text encoder, money) and are redone for
different reasons: a new threshold never hears the audio again, and a new check never asks the language model again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.refine.fusion_prompt import FUSION_TASK
from data_prep.refine.llm_client import ModelConfig
from data_prep.refine.outcomes import MEASURED, TAGS, Alignment, FusionRequest
from data_prep.refine.stages import build_fusion_request
from data_prep.refine.thresholds import Thresholds
from qamdt.keyed_rows import file_identity, make_key
from qamdt.manifest import Record


STEPS = ("generate", "suggest", "align", "fuse", "check")
# Raise the version of a step when it makes something else of the same input: its rows and those of later steps are
# then made again. The prompt of the language model needs no version, its text is part of the key.
STEP_VERSIONS = {"generate": 2, "suggest": 1, "align": 1, "fuse": 1, "check": 1}
RULES = "rules"
EMBEDDED_CLAP = "embedded"


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
        fusion_task: What it is told to do, before the captions and tags as JSON.
        suggester: The language model that suggests captions; none does when `None`.
        suggest_from: What it is given, "tags" or "audio".
    """

    captioners: tuple[str, ...] = (MEASURED, TAGS)
    clap: str = EMBEDDED_CLAP
    thresholds: Thresholds | None = None
    num_paraphrases: int = 2
    model: ModelConfig | None = None
    fusion_task: str = FUSION_TASK
    suggester: ModelConfig | None = None
    suggest_from: str = "tags"

    def __post_init__(self):
        if self.num_paraphrases < 0:
            raise ValueError(f"`num_paraphrases` must not be negative, got {self.num_paraphrases}.")
        if not self.fusion_task.strip():
            raise ValueError("`fusion_task` must say what to do, and it is empty.")
        if self.suggest_from not in ("tags", "audio"):
            raise ValueError(f"`suggest_from` must be 'tags' or 'audio', got {self.suggest_from!r}.")

    @property
    def asks(self) -> bool:
        """Whether a language model takes part."""
        return self.model is not None or self.suggester is not None

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that these settings take."""
        return tuple(step for step in STEPS if step != "suggest" or self.suggester is not None)


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


def make_keys(
    record: Record, audio: list, settings: RefineSettings, captioners: list, clap_name: str, prompt_key: int
) -> dict[str, int]:
    """Returns the keys of the steps of a clip, each a digest of all that its result depends on.

    Args:
        record: The clip.
        audio: Its `clip_identity`.
        settings: Settings of the run; without thresholds there are no keys beyond the first step.
        captioners: `identify_captioners(settings)`, which does not depend on the clip.
        clap_name: Name of the loaded CLAP model, with its version.
        prompt_key: `make_prompt_key(settings)`, which does not depend on the clip.
    """
    clip = [record.id, audio, record.captions, record.tags]
    keys = {"generate": make_key(STEP_VERSIONS["generate"], clip, captioners, clap_name)}
    candidates_key = keys["generate"]
    if settings.suggester is not None:
        asked = [settings.suggester.to_dict(), settings.suggest_from]
        candidates_key = keys["suggest"] = make_key(STEP_VERSIONS["suggest"], keys["generate"], asked)
    if settings.thresholds is not None:
        fuser = settings.model.to_dict() if settings.model else RULES
        asked = [fuser, settings.num_paraphrases, prompt_key]
        keys["align"] = make_key(STEP_VERSIONS["align"], candidates_key, settings.thresholds.to_dict())
        keys["fuse"] = make_key(STEP_VERSIONS["fuse"], keys["align"], asked)
        keys["check"] = make_key(STEP_VERSIONS["check"], keys["fuse"])
    return keys


def identify_captioners(settings: RefineSettings) -> list:
    """Returns by what the captioners are known: their names, and the files of those that are folders on this machine."""
    return [
        [name, *([file.name, *file_identity(file)] for file in sorted(Path(name).glob("*")) if file.is_file())]
        for name in settings.captioners
    ]


def make_prompt_key(settings: RefineSettings) -> int:
    """Returns a digest of the prompt: of all words that are the same for each clip, and of the schema."""
    request = FusionRequest(
        texts=("a", "b"),
        tags={"style": "c"},
        fallback="a",
        num_paraphrases=2,
        has_survivors=True,
        task=settings.fusion_task,
    )
    return make_key(request.messages, request.json_schema)


def make_fusion_request(job: Job, settings: RefineSettings) -> FusionRequest:
    """Returns what the fuser is asked about a clip."""
    alignment = Alignment.from_dict(job.inputs["align"]["alignment"])
    request = build_fusion_request(job.record, alignment, settings.num_paraphrases)
    return replace(request, task=settings.fusion_task)
