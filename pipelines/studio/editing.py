"""What the page does with a recording: its fields become an order, and a take's settings become fields again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.request import RESTORING, GenerationRequest
from pipelines.service.acceptance import Order
from pipelines.service.bodies import PLACEHOLDER


ACTIONS = {
    "continue": "continue",
    "repaint": "play a part anew",
    "loop": "make it a loop",
    "change": "change",
    "restore": "restore",
}
HINTS = {
    "continue": "It sounds as it is, and plays on from there.",
    "repaint": "The parts that you name are played anew; the rest stays as it is.",
    "loop": "Its last second leads back to its beginning.",
    "change": "As long as it is, and the more like what you describe, the more is changed.",
    "restore": "Moments that score low are cleaned; those that score high are left alone.",
}
# The fields that an action listens to; the others are not on the screen.
FIELDS = {
    "continue": ("prompt", "score", "seconds"),
    "repaint": ("prompt", "score", "spans"),
    "loop": ("prompt", "score"),
    "change": ("prompt", "score", "strength"),
    "restore": ("prompt",),
}
CHANGING = ("prompt", "score", "seconds", "spans", "strength")


@dataclass(frozen=True, kw_only=True)
class EditForm:
    """What stands in the fields of the page, in their order there."""

    recording: str | None
    action: str
    prompt: str
    score: float
    seconds: float
    spans: str
    strength: float
    steps: int
    guidance: float
    seed: int

    def order(self) -> Order:
        """The order that they make.

        Raises:
            ValueError: A field makes no sense.
        """
        if self.recording is None:
            raise ValueError("Choose a recording first, or send a take here.")
        if self.action not in ACTIONS:
            raise ValueError(f"Choose what to do with it, got {self.action!r}.")
        if self.action == "restore":
            asked = {"restore_audio": PLACEHOLDER, **RESTORING}
        elif not self.prompt.strip():
            raise ValueError("Describe the music first.")
        else:
            asked = {"quality": self.score, "guidance": self.guidance} | self._place()
        request = GenerationRequest(prompt=self.prompt, steps=int(self.steps), seed=int(self.seed), **asked)
        return Order(request=request, sound=Path(self.recording))

    def _place(self) -> dict:
        """How music is made of the recording."""
        if self.action == "change":
            return {"init_audio": PLACEHOLDER, "strength": self.strength}
        asked = {"inpaint_audio": PLACEHOLDER}
        if self.action == "continue":
            return asked | {"seconds": self.seconds}
        if self.action == "loop":
            return asked | {"loop": True}
        starts, ends = zip(*read_spans(self.spans), strict=True)
        return asked | {"inpaint_start": starts, "inpaint_end": ends}


def read_spans(text: str) -> list[tuple[float, float]]:
    """Reads spans such as "2-4.5, 8-9", in seconds.

    Raises:
        ValueError: There are none.
    """
    try:
        spans = [tuple(float(second) for second in span.split("-")) for span in text.split(",") if span.strip()]
    except ValueError:
        spans = []
    if not spans or any(len(span) != 2 for span in spans):
        raise ValueError(f'The parts must be seconds such as "2-4.5" or "2-4.5, 8-9", got {text!r}.')
    return spans


def write_spans(spans: list[tuple[float, float]]) -> str:
    """Writes spans as `read_spans` reads them."""
    return ", ".join(f"{start:g}-{end:g}" for start, end in spans)


def find_action(request: GenerationRequest) -> str | None:
    """What a request does with its recording; `None` if it has none."""
    if request.recording is None:
        return None
    if request.restore_audio is not None:
        return "restore"
    if request.init_audio is not None:
        return "change"
    return "loop" if request.loop else "repaint" if request.spans else "continue"


def middle_span(seconds: float) -> str:
    """The middle third of a recording, where something may be played anew."""
    return write_spans([(round(seconds / 3, 1), round(2 * seconds / 3, 1))])
