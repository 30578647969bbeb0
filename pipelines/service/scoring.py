"""Scores of uploaded sound files: each is looked at before it is decoded, scored, and removed."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile

from pipelines.service.errors import ServiceError
from pipelines.service.settings import ServiceSettings
from pipelines.silence import loading_bars
from whisq.scorer import WhisQScorer


MAX_CHANNELS = 8
RATES = range(1000, 384_001)


class Scoring:
    """The scorer of a service, which is loaded when the first file comes.

    Args:
        settings: The limits.
    """

    def __init__(self, settings: ServiceSettings):
        self._settings = settings
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(settings.max_scoring)
        self._scorer: WhisQScorer | None = None

    def load(self) -> WhisQScorer:
        """Loads the scorer, unless it is there."""
        with self._lock:
            if self._scorer is None:
                with loading_bars(shown=False):
                    self._scorer = WhisQScorer.from_pretrained(device=self._settings.device or "cpu")
            return self._scorer

    def score(self, content: bytes, prompt: str | None) -> dict[str, Any]:
        """Scores what was uploaded.

        Args:
            content: A wav, flac, ogg, mp3 or opus file.
            prompt: What the music should follow.

        Raises:
            ServiceError: It cannot be scored, or too many files wait.
        """
        if prompt is not None and len(prompt) > self._settings.max_prompt:
            raise ServiceError("invalid_request", f"`prompt` may have at most {self._settings.max_prompt} characters.")
        if not self._places.acquire(blocking=False):
            raise ServiceError("rate_limited", "Too many files wait to be scored. Try again later.")
        try:
            with tempfile.NamedTemporaryFile(prefix="qamdt-score-") as file:
                file.write(content)
                file.flush()
                return self.score_file(Path(file.name), prompt)
        finally:
            self._places.release()

    def score_file(self, path: Path, prompt: str | None) -> dict[str, Any]:
        """Scores a file that is here.

        Raises:
            ServiceError: It cannot be scored.
        """
        check_sound(path, self._settings.max_upload_seconds)
        scorer = self.load()
        with self._lock, loading_bars(shown=False):  # the text encoder comes with the first prompt
            try:
                score = asdict(scorer.score(path, prompts=prompt or None)[0])
            except ValueError as error:
                raise ServiceError("invalid_request", "The file cannot be decoded.") from error
        return {**score, "scorer": scorer.name}


def check_sound(path: Path, max_seconds: float) -> None:
    """Refuses what is no sound file, or unpacks to too much, before any of it is unpacked.

    Raises:
        ServiceError: That is so.
    """
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise ServiceError("invalid_request", "The file must be a wav, flac, ogg, mp3 or opus file.") from error
    if header.samplerate not in RATES or not 1 <= header.channels <= MAX_CHANNELS:
        raise ServiceError(
            "invalid_request",
            f"The file must have {RATES[0]} to {RATES[-1]} samples per second and at most {MAX_CHANNELS} channels, got "
            f"{header.samplerate} and {header.channels}.",
        )
    if header.duration > max_seconds:
        raise ServiceError(
            "too_large", f"The file may be at most {max_seconds:g} s long here, got {header.duration:.0f} s."
        )
