"""Asks a language model through the Batch API: half the price, answers within a day.

    submit    uploads the open questions in parts and starts a batch for each
    status    says how far the batches are
    collect   stores the answers of the batches that have ended

A part is written to disk before its batch is started, and a batch carries the name of its part. So a process that was
killed in between finds the batch again, and nothing is paid for twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.refine.llm_client import (
    ModelConfig,
    RowFailed,
    RunStopped,
    Server,
    import_openai,
    read_answer,
    redact,
    without_key,
)
from data_prep.refine.questions import Question, make_answer_row, make_failed_row, read_fusion
from data_prep.refine.spending import Spending, Usage
from qamdt.files import parse_json, read_json, read_json_lines, write_json, write_text


ENDPOINT = "/v1/chat/completions"
PART_NAME = "qamdt_part"  # under which a batch's metadata name its part
ENDED = ("completed", "expired", "failed", "cancelled")
_UNANSWERED = ("batch_expired", "batch_cancelled")  # errors of requests that were not worked on, and not paid for


@dataclass(frozen=True, kw_only=True)
class PartLimits:
    """How large a batch may be; the defaults are a little below what OpenAI allows.

    Args:
        max_requests: Most requests of a batch.
        max_bytes: Most bytes of its file.
    """

    max_requests: int = 50_000
    max_bytes: int = 190_000_000


class BatchEngine:
    """Submits questions of step `fuse` to the Batch API and collects the answers.

    Args:
        folder: Where the parts and the notes about them are kept.
        config: The model and how it is asked.
        server: Where it runs.
    """

    def __init__(self, folder: Path, config: ModelConfig, server: Server):
        self.folder = folder
        self.config = config
        self._key = server.read_key()
        self._client = import_openai().OpenAI(base_url=server.base_url, api_key=self._key, timeout=server.timeout_in_s)
        self._notes = _Notes(folder / "batches.json")
        folder.mkdir(parents=True, exist_ok=True)

    def submit(
        self, questions: Iterable[Question], spending: Spending, limits: PartLimits | None = None
    ) -> tuple[int, int]:
        """Submits all questions that no batch holds yet.

        Args:
            questions: What to ask; read lazily.
            spending: Running totals and the most that may be spent.
            limits: How large a batch may be.

        Returns:
            How many questions were submitted, in how many batches.

        Raises:
            CostLimitReached: The next batch might cost more than is left; those before it are submitted.
        """
        for part in self._list_parts():
            if "batch" not in self._notes.read(part):
                self._notes.add(part, {"batch": self._find_batch(part) or self._start_batch(part)})
        waiting = {key for part in self._list_parts() for key in self._read_waiting(part)}
        fresh = (question for question in questions if question.key not in waiting)
        num_requests = num_parts = 0
        for lines, bound in self._cut_into_parts(fresh, limits or PartLimits()):
            spending.reserve(bound)
            part = self._write_part(lines)
            self._notes.add(part, {"batch": self._start_batch(part)})
            num_requests += len(lines)
            num_parts += 1
        return num_requests, num_parts

    def describe(self) -> list[str]:
        """Says in a line for each batch how far it is."""
        lines = []
        for part in self._list_parts():
            note = self._notes.read(part)
            if "batch" not in note:
                lines.append(f"{part}: not started; submit again")
            elif "collected" in note:
                lines.append(f"{part}: {note['batch']} collected")
            else:
                with self._errors_explained():
                    batch = self._client.batches.retrieve(note["batch"])
                counts = batch.request_counts
                done = f", {counts.completed} of {counts.total} answered, {counts.failed} failed" if counts else ""
                lines.append(f"{part}: {note['batch']} {batch.status}{done}")
        return lines

    def collect(self, write: Callable[[dict[str, Any]], None]) -> tuple[int, int]:
        """Stores the answers of all batches that have ended; what a batch left unanswered can be submitted again.

        Args:
            write: Takes the rows of step `fuse`.

        Returns:
            How many batches were collected, and how many are still under way.
        """
        num_collected = num_open = 0
        for part in self._list_parts():
            note = self._notes.read(part)
            if "batch" not in note or "collected" in note:
                continue
            with self._errors_explained():
                batch = self._client.batches.retrieve(note["batch"])
            if batch.status not in ENDED:
                num_open += 1
                continue
            names = dict(self._read_names(part))
            for key, answer in self._iterate_answers(batch):
                if key in names and (row := self._make_row(key, names[key], answer)):
                    write(row)
            if batch.status == "failed":
                for key, name in names.items():
                    write(make_failed_row(key, name, self._explain_failure(batch), Usage()))
            self._notes.add(part, {"collected": True})
            num_collected += 1
        return num_collected, num_open

    def _make_row(self, key: int, name: str, answer: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the row of an answer; `None` where the batch ended before the question was asked."""
        error, response = answer.get("error"), answer.get("response")
        if isinstance(error, dict) and error.get("code") in _UNANSWERED:
            return None
        if error or not isinstance(response, dict) or response.get("status_code") != 200:
            reason = json.dumps(error or (response.get("body") if isinstance(response, dict) else response))
            return make_failed_row(key, name, redact(f"the batch brought an error: {reason}", self._key), Usage())
        usage = Usage()
        try:
            content, usage = read_answer(response.get("body"))
            row = make_answer_row(key, name, content, usage, partial(read_fusion, model=self.config.model))
            return without_key(row, self._key)
        except RowFailed as error:
            return make_failed_row(key, name, redact(str(error), self._key), error.usage)
        except ValueError as error:
            return make_failed_row(key, name, redact(f"unusable answer: {error}", self._key), usage)

    def _cut_into_parts(
        self, questions: Iterable[Question], limits: PartLimits
    ) -> Iterator[tuple[list[tuple[str, Question]], Usage]]:
        """Yields the lines of a part with their questions, and the most tokens that they may take."""
        lines: list[tuple[str, Question]] = []
        num_bytes, bound = 0, Usage()
        for question in questions:
            body = self.config.write_body(question.messages, question.json_schema)
            call = {"custom_id": f"{question.key:016x}", "method": "POST", "url": ENDPOINT, "body": body}
            line = json.dumps(call) + "\n"
            if lines and (len(lines) == limits.max_requests or num_bytes + len(line) > limits.max_bytes):
                yield lines, bound
                lines, num_bytes, bound = [], 0, Usage()
            lines.append((line, question))
            num_bytes += len(line)
            bound += self.config.bound_usage(body)
        if lines:
            yield lines, bound

    def _write_part(self, lines: list[tuple[str, Question]]) -> str:
        """Writes the requests of a part, and beside them the names of its clips, and returns the part's name."""
        text = "".join(line for line, _ in lines)
        names = "".join(json.dumps([f"{question.key:016x}", question.id]) + "\n" for _, question in lines)
        # Two submissions of the same questions, the first one expired, are two parts.
        salt = str(len(self._list_parts()))
        part = f"part-{hashlib.sha256((salt + text).encode()).hexdigest()[:16]}"
        write_text(self._names_path(part), names)
        write_text(self.folder / f"{part}.jsonl", text)
        return part

    def _start_batch(self, part: str) -> str:
        """Uploads a part and starts its batch; returns the batch's name."""
        with self._errors_explained():
            file = self._client.files.create(file=self.folder / f"{part}.jsonl", purpose="batch")
            # Not tried again by itself: a batch that was started although its answer got lost is found next time.
            batch = self._client.with_options(max_retries=0).batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={PART_NAME: part}
            )
        return batch.id

    def _find_batch(self, part: str) -> str | None:
        """Looks on the server for a batch of a part."""
        with self._errors_explained():
            batches = self._client.batches.list(limit=100)
            return next((batch.id for batch in batches if (batch.metadata or {}).get(PART_NAME) == part), None)

    def _iterate_answers(self, batch: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the answers and errors of a batch by key."""
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                with self._errors_explained():
                    text = self._client.files.content(file_id).text
                for line in text.split("\n"):
                    try:
                        answer = parse_json(line)
                        key = int(answer["custom_id"], 16)
                    except (ValueError, KeyError, TypeError):
                        continue  # no answer: its question can be submitted again
                    yield key, answer

    def _explain_failure(self, batch: Any) -> str:
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        messages = "; ".join(str(error.message) for error in errors[:3])
        return redact(f"the batch failed: {messages or 'the server gave no reason'}", self._key)

    def _list_parts(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("part-*.jsonl"))

    def _read_waiting(self, part: str) -> list[int]:
        """Returns the keys of a part whose batch is under way."""
        return [] if "collected" in self._notes.read(part) else [key for key, _ in self._read_names(part)]

    def _read_names(self, part: str) -> Iterator[tuple[int, str]]:
        for key, name in read_json_lines(self._names_path(part)):
            yield int(key, 16), name

    def _names_path(self, part: str) -> Path:
        return self.folder / f"{part}.names"

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """Turns errors of the server into one that ends the run, without the request that holds the key."""
        try:
            yield
        except import_openai().OpenAIError as error:
            raise RunStopped(f"the Batch API failed: {redact(str(error), self._key)}") from None


class _Notes:
    """What is known of each part, kept in a JSON file."""

    def __init__(self, path: Path):
        self.path = path
        self._notes: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}

    def read(self, part: str) -> dict[str, Any]:
        """Returns what is known of a part."""
        return self._notes.get(part, {})

    def add(self, part: str, facts: dict[str, Any]) -> None:
        """Notes facts about a part; they are on disk when this returns."""
        self._notes[part] = self.read(part) | facts
        write_json(self.path, self._notes)
