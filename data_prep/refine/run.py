"""One refinement of one manifest: what is done, what is to be done, and the files at its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.refine.jobs import STEPS, Job, RefineSettings, identify_captioners, make_keys, make_prompt_key
from data_prep.refine.manifest_rows import ManifestRows
from data_prep.refine.outcomes import Alignment, Fusion, Refinement
from data_prep.refine.stages import apply_refinement
from qamdt.files import read_json_lines, write_json_lines
from qamdt.keyed_rows import DONE, FAILED, KeyedRows
from qamdt.manifest import Record, clip_identity, write_manifest


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How many clips came out how.

    Args:
        num_clips: Lines of the manifest, or of this process's shard of it.
        num_refined: Clips in the refined manifest.
        num_failed: Clips that failed, with their reasons in `failures.jsonl`.
        num_pending: Clips that no run has come to yet.
    """

    num_clips: int
    num_refined: int
    num_failed: int
    num_pending: int


class RefineRun:
    """Keeps the books of a refinement; entered as a context by the process that writes.

    Args:
        manifest: The clips.
        folder: Where results go.
        settings: What decides the outcome.
        clap_name: Name of the CLAP model, with its version.
        shard: Which part of the clips is this process's, as `(number from 0, how many)`.
    """

    def __init__(
        self,
        manifest: ManifestRows,
        folder: Path,
        settings: RefineSettings,
        clap_name: str,
        *,
        shard: tuple[int, int] | None = None,
    ):
        self.manifest = manifest
        self.folder = folder
        self.settings = settings
        self.clap_name = clap_name
        self.shard = shard
        self._captioners = identify_captioners(settings)
        self._prompt_key = make_prompt_key(settings)
        self.stores = {step: KeyedRows(folder / "steps", step, shard) for step in STEPS}

    def __enter__(self) -> RefineRun:
        """Claims the results for this process, so that no other one pays for the same."""
        for store in self.stores.values():
            store.open()
        return self

    def __exit__(self, *_: object) -> None:
        for store in self.stores.values():
            store.close()

    @property
    def positions(self) -> range:
        """Positions of the clips that are this process's."""
        number, count = self.shard or (0, 1)
        return range(number, len(self.manifest), count)

    def make_keys(self, record: Record) -> dict[str, int]:
        """Returns the keys of the steps of a clip."""
        audio = clip_identity(self.manifest.path, record)
        return make_keys(record, audio, self.settings, self._captioners, self.clap_name, self._prompt_key)

    def iterate_jobs(
        self,
        step: str,
        *,
        retry_failed: bool = False,
        positions: Iterable[int] | None = None,
        on_skip: Callable[[], object] = lambda: None,
    ) -> Iterator[Job]:
        """Yields the jobs of a step that are to be done and whose earlier steps are done.

        Args:
            step: Name of the step.
            retry_failed: Whether jobs that failed before are to be done.
            positions: Which clips; those of this process when `None`.
            on_skip: Called for each clip that has no such job.
        """
        before = self.settings.steps[: self.settings.steps.index(step)]
        for position in self.positions if positions is None else positions:
            try:
                record = self.manifest.read(position)
            except ValueError:
                on_skip()
                continue
            keys = self.make_keys(record)
            is_ready = all(self.stores[earlier].status(keys[earlier]) == DONE for earlier in before)
            if is_ready and self._is_open(step, keys, retry_failed):
                inputs = {earlier: self.stores[earlier].read(keys[earlier]) for earlier in before}
                yield Job(key=keys[step], record=record, inputs=inputs)
            else:
                on_skip()

    def count_open(self, step: str, *, retry_failed: bool = False) -> int:
        """Counts the clips that a step has yet to do, if all earlier steps succeed."""
        records = self.manifest.read_good(self.positions)
        return sum(self._is_open(step, self.make_keys(record), retry_failed) for _, record in records)

    def _is_open(self, step: str, keys: dict[str, int], retry_failed: bool) -> bool:
        status = self.stores[step].status(keys[step])
        return status is None or (status == FAILED and retry_failed)

    def refresh(self, step: str) -> None:
        """Makes the rows that a step has written visible to the next one."""
        self.stores[step].sync()
        self.stores[step].refresh()

    def finish(self, refined_manifest: Path, *, keeps_originals: bool = True) -> Summary:
        """Writes the refined manifest, what happened to each clip, and the failures; each file whole or not at all.

        While clips are pending, only the failures are written; and nothing by a process that does one shard.

        Args:
            refined_manifest: Where the refined manifest goes.
            keeps_originals: Whether the captions that clips came with stay among their captions.
        """
        counts = {DONE: 0, FAILED: 0, None: 0}
        failures = self._iterate_failures(counts)
        if self.shard is None:
            write_json_lines(self.folder / "failures.jsonl", failures)
        else:
            deque(failures, maxlen=0)
        if self.shard is None and not counts[None] and counts[DONE]:
            write_manifest(
                refined_manifest,
                (apply_refinement(*pair, keeps_originals=keeps_originals) for pair in self._iterate_refined()),
            )
            rows = (refinement.to_dict() for _, refinement in self._iterate_refined())
            write_json_lines(self.folder / "refinements.jsonl", rows)
        return Summary(
            num_clips=len(self.positions),
            num_refined=counts[DONE],
            num_failed=counts[FAILED],
            num_pending=counts[None],
        )

    def iterate_refinements(self) -> Iterator[Refinement]:
        """Yields what `finish` wrote down of each clip."""
        yield from map(Refinement.from_dict, read_json_lines(self.folder / "refinements.jsonl"))

    def _iterate_failures(self, counts: dict[str | None, int]) -> Iterator[dict[str, Any]]:
        """Yields which clips failed, and where and why; counts how many came out how."""
        for position in self.positions:
            number = self.manifest.line_number(position)
            try:
                record = self.manifest.read(position)
            except ValueError as error:
                counts[FAILED] += 1
                yield {"line": number, "id": None, "step": "manifest", "reason": str(error)}
                continue
            keys = self.make_keys(record)
            ends = (
                (step, self.stores[step].status(keys[step]) if step in keys else None) for step in self.settings.steps
            )
            step, status = next(((step, status) for step, status in ends if status != DONE), (None, DONE))
            counts[status] += 1
            if status == FAILED:
                reason = self.stores[step].read(keys[step])["reason"]
                yield {"line": number, "id": record.id, "step": step, "reason": reason}

    def _iterate_refined(self) -> Iterator[tuple[Record, Refinement]]:
        """Yields the clips whose last step is done, with what came of them."""
        for _, record in self.manifest.read_good(self.positions):
            keys = self.make_keys(record)
            if any(self.stores[step].status(keys[step]) != DONE for step in self.settings.steps):
                continue
            yield (
                record,
                Refinement(
                    id=record.id,
                    original_captions=record.captions,
                    alignment=Alignment.from_dict(self.stores["align"].read(keys["align"])["alignment"]),
                    fusion=Fusion.from_dict(self.stores["check"].read(keys["check"])["fusion"]),
                ),
            )
