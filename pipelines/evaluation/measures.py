"""What is measured of a clip by itself: its embedding, the scorer's opinion, and what is heard in the music.

Each is a recipe that a worker process can be handed; `load` makes the function that measures. Its `settings` are all
that the result depends on besides the sound and what was wanted, so that a result is kept as long as they are the same.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import soxr

from pipelines.evaluation import music_measures, signal_measures
from pipelines.evaluation.embedders import load_embedder, load_function
from pipelines.evaluation.wanted import Wanted
from qamdt import tempo_and_key
from qamdt.audio import SAMPLING_RATE
from qamdt.music import Music


SHORTEST_IN_S = 2.0  # that a tempo of 55 beats a minute can be heard in
VERSION = 1  # raise it when the same sound gives other numbers
Measured = dict[str, Any]
Function = Callable[[np.ndarray, int, Wanted], Measured]


class Measure(Protocol):
    """A recipe.

    Attributes:
        name: Name of the results' file.
    """

    name: str

    def settings(self) -> dict[str, Any]:
        """All that the results depend on, as JSON has it."""

    def depends_on(self, wanted: Wanted) -> Any:
        """What of the request the result depends on, as JSON has it."""

    def load(self) -> Function:
        """Makes the function from samples `(samples,)`, their rate in Hz and what was wanted to JSON values."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingMeasure:
    """Where an embedder puts a clip, or what a classifier makes of it.

    Args:
        spec: See `load_embedder`.
        revision: Version of a model on the Hub.
        device: Where a CLAP computes.
        is_classifier: Whether `spec` is a function that gives logits.
    """

    spec: str
    revision: str | None = None
    device: str = "cpu"
    is_classifier: bool = False

    @property
    def name(self) -> str:
        return "logits" if self.is_classifier else "embeddings"

    def settings(self) -> dict[str, Any]:
        if self.is_classifier:
            return {"embedder": load_function(self.spec)[1], "version": VERSION}
        return {"embedder": load_embedder(self.spec, revision=self.revision, device="cpu").name, "version": VERSION}

    def depends_on(self, wanted: Wanted) -> None:
        return None

    def load(self) -> Function:
        if self.is_classifier:
            function = load_function(self.spec)[0]
        else:
            function = load_embedder(self.spec, revision=self.revision, device=self.device).embed

        def measure(samples: np.ndarray, sampling_rate: int, wanted: Wanted) -> Measured:
            vector = np.asarray(function(samples, sampling_rate), dtype=np.float32)
            if vector.ndim != 1 or not len(vector):
                raise ValueError(f"{self.spec!r} must give numbers of shape (size,), got {vector.shape}.")
            if not np.isfinite(vector).all():
                raise ValueError(f"{self.spec!r} gave numbers that are not finite.")
            return {"vector": encode_vector(vector)}

        return measure


@dataclass(frozen=True, kw_only=True)
class ScoreMeasure:
    """What WhisQ thinks of a clip.

    Args:
        scorer: Folder or Hub id; the embedded scorer when `None`.
        device: Where it computes.
    """

    scorer: str | None = None
    device: str = "cpu"
    name: str = "scores"

    def settings(self) -> dict[str, Any]:
        from whisq.scorer import WhisQScorer

        return WhisQScorer.from_pretrained(self.scorer).describe(reads_prompts=True) | {"version": VERSION}

    def depends_on(self, wanted: Wanted) -> str | None:
        return wanted.text

    def load(self) -> Function:
        from whisq.scorer import WhisQScorer

        scorer = WhisQScorer.from_pretrained(self.scorer, device=self.device)

        def measure(samples: np.ndarray, sampling_rate: int, wanted: Wanted) -> Measured:
            score = scorer.score(samples, sampling_rate, wanted.text)[0]
            if score.error is not None:
                raise ValueError(score.error)
            return {
                "overall_quality": score.overall_quality,
                "text_alignment": score.text_alignment,
                "curve": list(score.frame_overall_quality),
                "curve_hop_in_s": score.frame_hop_in_s,
                "duration_in_s": score.duration_in_s,
            }

        return measure


@dataclass(frozen=True, kw_only=True)
class MusicMeasure:
    """Tempo, key, timbre and plain signal measures, and how well beats, bars and chords sound where they should."""

    name: str = "music"

    def settings(self) -> dict[str, Any]:
        return {"version": VERSION}

    def depends_on(self, wanted: Wanted) -> dict[str, Any] | None:
        return None if wanted.music is None else asdict(wanted.music)

    def load(self) -> Function:
        def measure(samples: np.ndarray, sampling_rate: int, wanted: Wanted) -> Measured:
            if sampling_rate != SAMPLING_RATE:
                samples = soxr.resample(samples, sampling_rate, SAMPLING_RATE)
            if len(samples) < SHORTEST_IN_S * SAMPLING_RATE:
                raise ValueError(
                    f"tempo and key are heard in clips of at least {SHORTEST_IN_S:g} s, and this one has "
                    f"{len(samples) / SAMPLING_RATE:.2f} s"
                )
            return measure_signal(samples) | measure_music(samples, wanted.music)

        return measure


def measure_signal(waveform: np.ndarray) -> Measured:
    """Measures of 16 kHz samples `(samples,)` that need to know nothing of what they should be."""
    return {
        "bandwidth_hz": signal_measures.bandwidth_hz(waveform, SAMPLING_RATE),
        "rolloff_hz": signal_measures.rolloff_hz(waveform, SAMPLING_RATE),
        "noise_floor_db": signal_measures.noise_floor_db(waveform, SAMPLING_RATE),
        "tempo_bpm": tempo_and_key.tempo_bpm(waveform, SAMPLING_RATE),
        "key": tempo_and_key.key_name(waveform, SAMPLING_RATE),
        "timbre": signal_measures.timbre(waveform, SAMPLING_RATE).round(3).tolist(),
    }


def measure_music(waveform: np.ndarray, music: Music | None) -> Measured:
    """Where beats, bars and chords were asked for, how well they sound there, in 16 kHz samples `(samples,)`."""
    measured = {}
    if music is not None and music.tempo_bpm and music.first_beat_in_s is not None:
        measured["beat_contrast"] = music_measures.beat_contrast(waveform, SAMPLING_RATE, music)
        if music.time_signature:
            measured["metre_contrast"] = music_measures.metre_contrast(waveform, SAMPLING_RATE, music)
    if music is not None and music.chords:
        measured["chord_match"] = music_measures.chord_match(waveform, SAMPLING_RATE, music).tolist()
    return measured


def encode_vector(vector: np.ndarray) -> str:
    """Packs float32 numbers `(size,)` into a string."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def decode_vector(text: str) -> np.ndarray:
    """Undoes `encode_vector`, as float64."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64)
