"""The models of a service: one thread at a time makes clips with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.clips import Clip, ClipMaker, choose_device, decide
from pipelines.request import GenerationRequest
from pipelines.silence import loading_bars, request_warnings
from qamdt.cpu_memory import keep_freed_memory
from qamdt.embedded import EMBEDDED_MODEL_DIR, default_model


class Cancelled(Exception):
    """Raised in the middle of a generation that nobody wants any more."""


class Engine:
    """Makes clips with one model, which is loaded when it is first needed and kept.

    Args:
        model: Folder or Hub id; the default model when `None`.
        device: Where to compute; a GPU where there is one when `None`.
    """

    def __init__(self, model: str | None = None, device: str | None = None):
        self.model = model or default_model()
        self.device = choose_device(device)
        self._maker: ClipMaker | None = None

    @property
    def model_id(self) -> str:
        """What clients call the model: the name of its folder, or its Hub id."""
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

    @property
    def native_seconds(self) -> float | None:
        """The length that the model was built for; `None` until it is loaded."""
        return None if self._maker is None else self._maker.pipe.native_audio_length_in_s

    def load(self) -> None:
        """Loads the model, for requests without wishes."""
        keep_freed_memory()
        self._load(self.decide(GenerationRequest(prompt="")))

    def decide(self, request: GenerationRequest) -> GenerationRequest:
        """Decides what a request leaves open; the model is the engine's."""
        name = EMBEDDED_MODEL_DIR.name if self.model == str(EMBEDDED_MODEL_DIR) else self.model
        return decide(replace(request, model=name), self.device)

    def make(self, requests: Sequence[GenerationRequest], on_step: Callable[[int, int], None]) -> list[Clip]:
        """Makes the clips of decided requests that differ in their seeds alone.

        Args:
            requests: What to make.
            on_step: Called after every step as `on_step(steps_done, all_steps)`; may raise `Cancelled`.

        Raises:
            ValueError: The model cannot do what is asked.
        """
        if self._maker is None or not self._maker.answers(requests[0]):
            self._load(requests[0])
        with request_warnings(shown=False):
            return self._maker.make(requests, on_step=on_step)

    def _load(self, request: GenerationRequest) -> None:
        self._maker = None  # before the next is loaded: memory may not hold two
        with loading_bars(shown=False):
            self._maker = ClipMaker(request, self.device)
        self._maker.pipe.set_progress_bar_config(disable=True)
