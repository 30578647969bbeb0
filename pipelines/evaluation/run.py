"""An evaluation from beginning to end: collections are listed, clips measured, and figures drawn from what was measured.

What cannot be measured is named with its reason, and the rest is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.clips import choose_device
from pipelines.evaluation.classes import CLASSES, class_logits
from pipelines.evaluation.clip_figures import Row, clap_rows, control_rows, score_rows
from pipelines.evaluation.clip_rows import Failure, measure_clips
from pipelines.evaluation.control import Measurement, best_places, can_weight_keys
from pipelines.evaluation.distribution import class_figures, distance_figures, memorising_figures
from pipelines.evaluation.embedders import Embedder, load_embedder
from pipelines.evaluation.measures import (
    EmbeddingMeasure,
    Measure,
    Measured,
    MusicMeasure,
    ScoreMeasure,
    decode_vector,
)
from pipelines.evaluation.quality_control import mean_response
from pipelines.evaluation.reconstruction import Reconstruction
from pipelines.evaluation.request import CLASSES as CLASS_METRICS
from pipelines.evaluation.request import CONTROL, DISTANCES, SCORES, EvaluationRequest
from pipelines.evaluation.wanted import Collection, open_collection


@dataclass(kw_only=True)
class Evaluation:
    """What was measured.

    Args:
        request: What was asked for.
        models: Embedder, classifier and scorer, by name and weights.
        collections: Place and number of clips of each collection.
        distribution: Figures of whole collections by their names.
        clips: Tables of means over clips, by the name of their collection.
        response: Asked and heard quality, and how many clips, for each quality that was asked for.
        memorising: See `memorising_figures`.
        not_measured: What could not be measured, and why.
        faults: What is wrong with single clips, prompts and lines: collection, name and reason.
    """

    request: EvaluationRequest
    models: dict[str, str] = field(default_factory=dict)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    distribution: dict[str, dict[str, Any]] = field(default_factory=dict)
    clips: dict[str, dict[str, Row]] = field(default_factory=dict)
    response: list[tuple[float, float, int]] = field(default_factory=list)
    memorising: dict[str, Any] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    faults: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Clips of a collection in the space of the embedder.

    Args:
        places: Which clips of the collection, those that could be embedded.
        vectors: Their embeddings `(clips, size)`.
    """

    places: list[int]
    vectors: np.ndarray


def evaluate(
    request: EvaluationRequest, rows: Path, *, only: Callable[[Path], bool] = lambda path: True
) -> Evaluation:
    """Measures what is asked for.

    Args:
        request: What to measure.
        rows: Folder of what was measured of single clips; a second run finds it there.
        only: Which sound files of the generated folder count.

    Raises:
        FileNotFoundError: A place that is named does not exist.
        ValueError: There is no generated clip.
    """
    return _Run(replace(request, device=choose_device(request.device)), rows, only).finish()


class _Run:
    """One evaluation under way."""

    def __init__(self, request: EvaluationRequest, rows: Path, only: Callable[[Path], bool]):
        self.request = request
        self.rows = rows
        self.result = Evaluation(request=request)
        generated = open_collection(request.generated, prompts=request.prompts)
        places = [place for place, clip in enumerate(generated.clips) if only(clip.path)]
        self.collections = {"generated": self._note("generated", _pick(generated, places))}
        for name in ("reference", "training"):
            if (place := getattr(request, name)) is not None:
                self._open(name, place, getattr(request, f"{name}_tags"))

    def _open(self, name: str, place: Path, tags: dict[str, Any]) -> None:
        try:
            self.collections[name] = self._note(name, open_collection(place, tags=tags))
        except ValueError as error:  # an empty one: what needs none can still be measured
            self.result.collections[name] = {"place": str(place), "clips": 0}
            self.result.faults.append({"collection": name, "name": str(place), "reason": str(error)})

    def _note(self, name: str, collection: Collection) -> Collection:
        """Draws as many clips as are asked for, and notes what is wrong with the list."""
        if self.request.max_clips is not None:
            order = np.random.default_rng(self.request.seed).permutation(len(collection.clips))
            collection = _pick(collection, sorted(order[: self.request.max_clips].tolist()))
        self.result.collections[name] = {"place": collection.name, "clips": len(collection.clips)}
        self.result.faults += [
            {"collection": name, "name": _line(fault.file, fault.line), "reason": fault.error}
            for fault in collection.faults
        ]
        return collection

    def finish(self) -> Evaluation:
        asks_for = self.request.asks_for
        if asks_for(*DISTANCES, *CLASS_METRICS, "clap", "memorising"):
            self._measure_space()
        if metrics := asks_for(*CONTROL):
            self._measure_clips(MusicMeasure(), metrics, control_rows)
        if metrics := asks_for(*SCORES):
            self._measure_clips(self._score_measure(), metrics, score_rows)
        return self.result

    def _measure(
        self, name: str, measure: Measure, *, reconstruction: Reconstruction | None = None
    ) -> list[Measured | Failure]:
        """Measures a collection and notes the clips that cannot be."""
        collection = self.collections[name]
        results = measure_clips(
            collection, measure, self.rows, reconstruction=reconstruction, num_workers=self.request.num_workers
        )
        for clip, result in zip(collection.clips, results, strict=True):
            fault = (
                {"collection": name, "name": clip.id, "reason": result.reason} if isinstance(result, Failure) else None
            )
            if fault is not None and fault not in self.result.faults:
                self.result.faults.append(fault)
        return results

    def _embed(self, name: str, *, reconstruction: Reconstruction | None = None, is_classifier: bool = False) -> Space:
        request = self.request
        spec = request.classifier if is_classifier else request.embedder
        revision = None if is_classifier else request.revision
        measure = EmbeddingMeasure(spec=spec, revision=revision, device=request.device, is_classifier=is_classifier)
        results = self._measure(name, measure, reconstruction=reconstruction)
        vectors = {
            place: decode_vector(result["vector"])
            for place, result in enumerate(results)
            if not isinstance(result, Failure)
        }
        size = len(next(iter(vectors.values()), ()))
        for place, vector in vectors.items():
            if len(vector) != size:
                raise ValueError(
                    f"{spec!r} must give as many numbers for every clip, got {size} and, for "
                    f"{self.collections[name].clips[place].id!r}, {len(vector)}."
                )
        return Space(places=list(vectors), vectors=np.array(list(vectors.values())).reshape(-1, size))

    def _measure_space(self) -> None:
        """Everything that is measured in the embedder's space."""
        embedder = load_embedder(self.request.embedder, revision=self.request.revision, device=self.request.device)
        self.result.models["embedder"] = embedder.name
        spaces = {name: self._embed(name) for name in self.collections if name != "training"}
        # Clips of other qualities and curves are no sample of what the model makes at its best.
        spaces["generated"] = _restrict(spaces["generated"], best_places(self.collections["generated"].wanted))
        if metrics := self.request.asks_for(*DISTANCES):
            self._measure_distances(spaces, metrics)
        if metrics := self.request.asks_for(*CLASS_METRICS):
            self._measure_classes(spaces, embedder, metrics)
        if self.request.asks_for("clap"):
            self._measure_prompts(spaces, embedder)
        if self.request.asks_for("memorising"):
            self._measure_memory(spaces)

    def _measure_distances(self, spaces: dict[str, Space], metrics: Sequence[str]) -> None:
        if (reason := self._why_no_reference(spaces)) is not None:
            self.result.not_measured |= dict.fromkeys(metrics, reason)
            return
        request, reference = self.request, spaces["reference"]
        reconstructed = None
        if request.ceiling is not None:
            through = self._embed("reference", reconstruction=Reconstruction(model=request.ceiling))
            places = sorted(set(reference.places) & set(through.places))  # the others are named among the faults
            reference, reconstructed = _restrict(reference, places), _restrict(through, places).vectors
        for metric in metrics:
            try:
                self.result.distribution |= distance_figures(
                    spaces["generated"].vectors,
                    reference.vectors,
                    (metric,),
                    reconstructed=reconstructed,
                    num_resamples=request.num_resamples,
                    seed=request.seed,
                )
            except ValueError as error:  # too few clips for this one
                self.result.not_measured[metric] = str(error)

    def _why_no_reference(self, spaces: dict[str, Space]) -> str | None:
        if self.request.reference is None:
            return "it needs --reference"
        for name in ("generated", "reference"):
            count = len(spaces[name].vectors) if name in spaces else 0
            if count < 2:
                return f"it needs at least two clips on both sides, and {name} has {count} that can be embedded"
        return None

    def _measure_classes(self, spaces: dict[str, Space], embedder: Embedder, metrics: Sequence[str]) -> None:
        request = self.request
        if request.classifier is not None:
            logits = {name: self._embed(name, is_classifier=True) for name in spaces}
            self.result.models["classifier"] = request.classifier
        elif embedder.clap is not None:
            classes = request.classes or CLASSES
            logits = {
                name: replace(space, vectors=class_logits(embedder.clap, space.vectors, classes))
                for name, space in spaces.items()
                if space.places
            }
            self.result.models["classifier"] = f"{embedder.name}, similarity to {len(classes)} texts"
        else:
            reason = "it needs classes: name a CLAP as --embedder, or a --classifier"
            self.result.not_measured |= dict.fromkeys(metrics, reason)
            return
        if "generated" not in logits or len(logits["generated"].places) < 2:
            reason = "it needs at least two generated clips that can be embedded"
            self.result.not_measured |= dict.fromkeys(metrics, reason)
            return
        reference = logits.get("reference")
        pairs = [] if reference is None else self._pair(logits["generated"].places, reference.places)
        if "kl" in metrics and not pairs:
            self.result.not_measured["kl"] = "it needs reference clips with the ids or the prompts of generated ones"
        self.result.distribution |= class_figures(
            logits["generated"].vectors,
            None if reference is None else reference.vectors,
            pairs,
            metrics,
            num_resamples=request.num_resamples,
            seed=request.seed,
        )

    def _pair(self, generated: Sequence[int], reference: Sequence[int]) -> list[tuple[int, int]]:
        """Finds for each generated clip the reference clip with its id, or else with its prompt."""
        clips = self.collections["reference"].clips
        by_name: dict[str, int] = {}
        for number, place in enumerate(reference):
            for name in (clips[place].id, clips[place].path.stem, clips[place].prompt):
                if name:
                    by_name.setdefault(name, number)
        pairs = []
        for number, place in enumerate(generated):
            clip = self.collections["generated"].clips[place]
            partner = next((by_name[name] for name in (clip.id, clip.path.stem, clip.prompt) if name in by_name), None)
            pairs += [] if partner is None else [(number, partner)]
        return pairs

    def _measure_prompts(self, spaces: dict[str, Space], embedder: Embedder) -> None:
        if embedder.clap is None:
            self.result.not_measured["clap"] = "the embedder knows no texts; name a CLAP as --embedder"
            return
        for name, space in spaces.items():
            prompts = [self.collections[name].clips[place].prompt for place in space.places]
            heard = [number for number, prompt in enumerate(prompts) if prompt and prompt.strip()]
            if heard:
                texts = [prompts[number] for number in heard]
                rows = clap_rows(
                    space.vectors[heard],
                    embedder.clap.embed_text(texts).astype(np.float64),
                    texts,
                    seed=self.request.seed,
                )
                self.result.clips.setdefault(name, {}).update(rows)
            elif name == "generated":
                self.result.not_measured["clap"] = (
                    "no clip that can be embedded has a prompt; name a file with --prompts"
                )

    def _measure_memory(self, spaces: dict[str, Space]) -> None:
        if "training" not in self.collections:
            self.result.not_measured["memorising"] = "it needs --training"
            return
        training, generated = self._embed("training"), spaces["generated"]
        if not len(training.vectors) or not len(generated.vectors):
            self.result.not_measured["memorising"] = "no clip could be embedded on one of the sides"
            return
        held_out = spaces.get("reference")
        report = memorising_figures(
            generated.vectors,
            training.vectors,
            held_out.vectors if held_out is not None and len(held_out.vectors) else None,
            seed=self.request.seed,
        )
        clips = {name: self.collections[name].clips for name in ("generated", "training")}
        report["most_similar"] = [
            (clips["generated"][generated.places[i]].id, clips["training"][training.places[j]].id, similarity)
            for i, j, similarity in report["most_similar"]
        ]
        self.result.memorising = report

    def _score_measure(self) -> ScoreMeasure:
        measure = ScoreMeasure(scorer=self.request.scorer, device=self.request.device)
        self.result.models["scorer"] = measure.settings()["scorer"]
        return measure

    def _measure_clips(
        self, measure: Measure, metrics: Sequence[str], tabulate: Callable[..., dict[str, Row]]
    ) -> None:
        """Means over clips: of generated ones, of reference ones, and of those after an autoencoder."""
        tables = {"generated": self._measurements("generated", measure)}
        if "reference" in self.collections:
            tables["reference"] = self._measurements("reference", measure)
            if self.request.ceiling is not None:
                through = Reconstruction(model=self.request.ceiling)
                tables["reconstructed"] = self._measurements("reference", measure, reconstruction=through)
        for name, clips in tables.items():
            self.result.clips.setdefault(name, {}).update(tabulate(clips, metrics, seed=self.request.seed))
        for metric in metrics:
            if not tabulate(tables["generated"], (metric,)):
                self.result.not_measured[metric] = _why_not(metric, len(tables["generated"]))
        if "key" in metrics and not can_weight_keys():
            reason = "it needs mir_eval, which pip install 'qamdt[evaluate]' brings"
            self.result.not_measured["key, weighted as MIREX does"] = reason
        if "quality" in metrics:
            self.result.response = mean_response(tables["generated"])

    def _measurements(
        self, name: str, measure: Measure, *, reconstruction: Reconstruction | None = None
    ) -> list[Measurement]:
        results = self._measure(name, measure, reconstruction=reconstruction)
        return [
            (wanted, result)
            for wanted, result in zip(self.collections[name].wanted, results, strict=True)
            if not isinstance(result, Failure)
        ]


def _why_not(metric: str, num_clips: int) -> str:
    if not num_clips:
        return "no clip could be measured"
    needs = {
        "chords": "chords in their records",
        "instrument": "two instruments, each named in at least two prompts",
        "quality": "the same prompt and seed at several qualities",
        "curve": "a quality curve in their records",
    }
    return f"it needs clips with {needs.get(metric, f'a {metric} in their prompts or records')}"


def _pick(collection: Collection, places: Sequence[int]) -> Collection:
    if not places:
        raise ValueError(f"there is no clip to evaluate in {collection.name!r}.")
    clips = [collection.clips[place] for place in places]
    return replace(collection, clips=clips, wanted=[collection.wanted[place] for place in places])


def _restrict(space: Space, places: Sequence[int]) -> Space:
    """The clips of a space that are at some places of their collection."""
    kept = [number for number, place in enumerate(space.places) if place in set(places)]
    return Space(places=[space.places[number] for number in kept], vectors=space.vectors[kept])


def _line(file: str, line: int | None) -> str:
    return file if line is None else f"{file}, line {line}"
