"""Asks a language model for many rows at once, with a bounded number of requests under way."""

import asyncio
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from data_prep.refine.fuse import read_response
from data_prep.refine.jobs import Job, RefineSettings, make_fusion_request, make_row
from data_prep.refine.llm_client import LlmClient, RowFailed, RunStopped
from data_prep.refine.outcomes import FusionRequest
from data_prep.refine.spending import CostLimitReached, Usage


MAX_FAILURES_IN_A_ROW = 100


@dataclass(frozen=True, kw_only=True)
class Question:
    """A clip that waits for the answer of a language model.

    Args:
        key: Key of the row in step `fuse`.
        id: Name of the clip.
        request: What is asked.
    """

    key: int
    id: str
    request: FusionRequest


def iterate_questions(
    jobs: Iterable[Job], settings: RefineSettings, write: Callable[[dict[str, Any]], None]
) -> Iterator[Question]:
    """Yields the questions about clips; what needs no answer or can have none is written at once.

    Args:
        jobs: Jobs of step `fuse`.
        settings: Settings of the run.
        write: Takes the rows of clips that are not asked about.
    """
    for job in jobs:
        try:
            request = make_fusion_request(job, settings)
        except ValueError as error:
            write(make_row(job.key, job.record.id, failure=str(error)))
            continue
        if request.has_survivors:
            yield Question(key=job.key, id=job.record.id, request=request)
        else:
            write(make_row(job.key, job.record.id) | {"fuser": settings.model.model, "answer": None})


def make_answer_row(key: int, row_id: str, content: str, usage: Usage, model: str) -> dict[str, Any]:
    """Returns the row of an answer.

    Raises:
        ValueError: The answer is not of the schema that was asked for.
    """
    caption, paraphrases = read_response(content)
    answer = {"caption": caption, "paraphrases": paraphrases}
    return make_row(key, row_id) | {"fuser": model, "answer": answer, "usage": usage.to_dict()}


def make_failed_row(key: int, row_id: str, reason: str, usage: Usage) -> dict[str, Any]:
    """Returns the row of a clip without an acceptable answer."""
    return make_row(key, row_id, failure=reason) | {"usage": usage.to_dict()}


def answer_questions(
    questions: Iterator[Question], client: LlmClient, write: Callable[[dict[str, Any]], None]
) -> None:
    """Answers questions until none are left; a row without an acceptable answer is written with its reason.

    Questions are taken one by one as requests come back, so memory does not grow with their number. An interrupt
    (Ctrl-C or SIGTERM) asks no further question and waits for the answers under way, which are paid for; a second one
    waits for nothing.

    Args:
        questions: What to ask; read lazily.
        client: Whom to ask; closed at the end.
        write: Takes each row as soon as it is there.

    Raises:
        RunStopped: Going on makes no sense, or the run was interrupted; rows without answer stay to be done.
        CostLimitReached: The money is used up.
    """
    asyncio.run(_answer_interruptibly(questions, client, write))


async def _answer_interruptibly(
    questions: Iterator[Question], client: LlmClient, write: Callable[[dict[str, Any]], None]
) -> None:
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        client.stopped = client.stopped or RunStopped("interrupted; run the same command again to go on.")
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, interrupt)
    await answer_concurrently(questions, client, write)


async def answer_concurrently(
    questions: Iterator[Question], client: LlmClient, write: Callable[[dict[str, Any]], None]
) -> None:
    """`answer_questions` inside an event loop, deaf to interrupts."""
    failures_in_a_row = 0

    async def ask(question: Question) -> dict[str, Any]:
        make_row_of = partial(make_answer_row, question.key, question.id, model=client.config.model)
        return await client.ask(question.request.messages, question.request.json_schema, make_row_of)

    async def work() -> None:
        nonlocal failures_in_a_row
        for question in questions:  # all workers draw from one iterator
            try:
                row = await ask(question)
                failures_in_a_row = 0
            except RowFailed as error:
                row = make_failed_row(question.key, question.id, str(error), error.usage)
                failures_in_a_row += 1
            except (RunStopped, CostLimitReached):
                return
            write(row)
            if failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                client.stop(f"{failures_in_a_row} rows in a row failed, the last one with: {row['reason']}")
            if client.stopped is not None:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(client.server.concurrency):
                group.create_task(work())
    finally:
        await client.close()
    if client.stopped is not None:
        raise client.stopped
