"""Scores of uploaded sound files: each is looked at before it is decoded, scored, and removed."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.service.errors import ServiceError
from pipelines.service.settings import ServiceSettings
from pipelines.service.sound import check_sound
from pipelines.silence import loading_bars
from whisq.scorer import WhisQScorer


class Scoring:
    """The scorer of a service, which is loaded when the first file comes.

    Args:
        settings: The limits.
    """

    def __init__(self, settings: ServiceSettings):
        self._settings = settings
        self._lock = threading.Lock()
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
            ServiceError: It cannot be scored.
        """
        if prompt is not None and len(prompt) > self._settings.max_prompt:
            raise ServiceError("invalid_request", f"`prompt` may have at most {self._settings.max_prompt} characters.")
        with tempfile.NamedTemporaryFile(prefix="qamdt-score-") as file:
            file.write(content)
            file.flush()
            return self.score_file(Path(file.name), prompt)

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
