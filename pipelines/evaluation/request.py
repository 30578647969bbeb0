"""What an evaluation is asked to do. Nothing slow is imported here, so that a wrong request is refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.input_checks import check_choices, check_count


DISTANCES = ("fad", "kad", "prdc")
CLASSES = ("is", "kl")
CONTROL = ("tempo", "key", "chords", "instrument")
SCORES = ("whisq", "quality", "curve")
METRICS = (*DISTANCES, *CLASSES, "clap", *CONTROL, *SCORES, "memorising")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to measure, on what, with what.

    Args:
        generated: Folder or manifest of the clips to evaluate.
        reference: Folder or manifest of real music.
        training: Folder or manifest of what the model was trained on.
        prompts: File with the prompts of the generated clips; what their records or their manifest say when `None`.
        reference_tags: Only clips of the reference manifest whose tags have these values.
        training_tags: The same of the training manifest.
        metrics: Some of `METRICS`; all that the collections allow when `None`.
        embedder: See `pipelines.evaluation.embedders.load_embedder`.
        revision: Version of an embedder on the Hub.
        classifier: `FILE.py:FUNCTION` that gives logits; the embedder's similarity to `classes` when `None`.
        classes: Names of the classes; those of `pipelines.evaluation.classes` when `None`.
        scorer: Folder or Hub id of a WhisQ scorer; the embedded one when `None`.
        ceiling: Folder of a model, through whose autoencoder the reference clips are sent for comparison.
        max_clips: Most clips of each collection, drawn by `seed`; all when `None`.
        num_resamples: Bootstrap resamples behind the intervals of collections; no such intervals when 0.
        num_workers: Processes that measure; 0 for this one.
        device: Where models compute; a GPU where there is one when `None`.
        seed: Seed of everything that is drawn.

    Raises:
        ValueError: A value makes no sense.
    """

    generated: Path
    reference: Path | None = None
    training: Path | None = None
    prompts: Path | None = None
    reference_tags: Mapping[str, Any] = field(default_factory=dict)
    training_tags: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] | None = None
    embedder: str = "embedded"
    revision: str | None = None
    classifier: str | None = None
    classes: tuple[str, ...] | None = None
    scorer: str | None = None
    ceiling: Path | None = None
    max_clips: int | None = None
    num_resamples: int = 100
    num_workers: int = 0
    device: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.metrics is not None:
            if not self.metrics:
                raise ValueError(f"`metrics` must name at least one of {', '.join(METRICS)}.")
            check_choices("metrics", self.metrics, METRICS)
        if self.max_clips is not None:
            check_count("max_clips", self.max_clips)
        for name in ("num_resamples", "num_workers", "seed"):
            check_count(name, getattr(self, name), minimum=0)
        if self.classes is not None and (self.classifier is not None or len(set(self.classes)) < 2):
            raise ValueError("`classes` must be at least two names, and goes without `classifier`.")
        for name in ("reference", "training"):
            if getattr(self, f"{name}_tags") and getattr(self, name) is None:
                raise ValueError(f"`{name}_tags` goes with `{name}`, which is missing.")
        if self.ceiling is not None and self.reference is None:
            raise ValueError("`ceiling` sends the clips of `reference` through an autoencoder, and there is none.")

    def asks_for(self, *metrics: str) -> tuple[str, ...]:
        """Those of some metrics that are asked for."""
        return tuple(name for name in metrics if self.metrics is None or name in self.metrics)
