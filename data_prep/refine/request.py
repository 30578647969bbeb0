"""What a caption refinement is asked for, whoever asks: the command line, a program, or a JSON file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.refine.jobs import RefineSettings
from data_prep.refine.llm_client import Server
from data_prep.refine.spending import Prices
from qamdt.settings import build


BATCH_DISCOUNT = 0.5  # what the Batch API takes of the usual price


@dataclass(frozen=True, kw_only=True)
class RefineRequest:
    """One refinement of one manifest.

    Args:
        manifest: Manifest of the corpus.
        out: Refined manifest, beside the manifest, since paths in it are relative; `refined.jsonl` when `None`. All
            else goes to a folder of its name.
        settings: What decides the outcome.
        server: Where the language models run and how to treat it; OpenAI's when `None`.
        input_price: Price of a million tokens of prompts.
        output_price: Price of a million tokens of answers.
        max_cost: Most that all runs together may cost; no limit when `None`.
        engine: Who asks the language model: this process ("async"), the Batch API ("batch"), or a Ray cluster ("ray"),
            which hears the audio too.
        batch: What to do with the Batch API: "submit" the open questions or "collect" the answers.
        shard: Which part of the clips to do, as `(number from 0, how many)`; all when `None`.
        num_workers: Processes that hear audio.
        batch_size: Clips heard at once.
        device: Where CLAP and captioner models compute.
        retry_failed: Whether clips that failed before are tried again.
        drop_originals: Whether the refined captions take the place of the ones that clips came with, and do not only
            precede them.
    """

    manifest: str
    out: str | None = None
    settings: RefineSettings = field(default_factory=RefineSettings)
    server: Server | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    max_cost: float | None = None
    engine: Literal["async", "batch", "ray"] = "async"
    batch: Literal["submit", "collect"] | None = None
    shard: tuple[int, int] | None = None
    num_workers: int = 1
    batch_size: int = 16
    device: str = "cpu"
    retry_failed: bool = False
    drop_originals: bool = False

    def __post_init__(self):
        if self.engine not in ("async", "batch", "ray") or self.batch not in (None, "submit", "collect"):
            raise ValueError(
                "`engine` must be 'async', 'batch' or 'ray' and `batch` 'submit', 'collect' or None, "
                f"got {self.engine!r} and {self.batch!r}."
            )
        if (self.engine == "batch") != (self.batch is not None):
            raise ValueError("`engine` 'batch' and `batch`, which says what to do with it, need each other.")
        if self.engine == "batch" and self.settings.model is None:
            raise ValueError("`engine` 'batch' needs a `model` in `settings`.")
        if self.server is not None and not self.settings.asks:
            raise ValueError("`server` needs a `model` or a `suggester` in `settings`: the name by which it knows it.")
        if self.num_workers < 1 or self.batch_size < 1:
            raise ValueError(
                f"`num_workers` and `batch_size` must be at least 1, got {self.num_workers} and {self.batch_size}."
            )
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise ValueError(f"`shard` must be (i, n) with 0 <= i < n, got {self.shard}.")
        manifest, out = Path(self.manifest), self.refined_manifest
        if out.suffix != ".jsonl" or out.resolve().parent != manifest.resolve().parent:
            raise ValueError(
                f"`out` must be a .jsonl file beside the manifest, in {str(manifest.parent)!r}, because paths in it are "
                f"relative; got {str(out)!r}."
            )
        if out.resolve() == manifest.resolve():
            raise ValueError(f"`out` must not be the manifest itself, got {str(out)!r}.")

    @property
    def refined_manifest(self) -> Path:
        """Where the refined manifest goes."""
        return Path(self.manifest).with_name("refined.jsonl") if self.out is None else Path(self.out)

    @property
    def prices(self) -> Prices:
        """What a million tokens cost by the engine that asks."""
        discount = BATCH_DISCOUNT if self.engine == "batch" else 1.0
        return Prices(input_price=self.input_price, output_price=self.output_price, discount=discount)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RefineRequest":
        """Builds a request from decoded JSON, refusing unknown names and wrong types."""
        return build(cls, values)
