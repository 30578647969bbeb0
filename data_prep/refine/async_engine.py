"""Asks a language model for many rows at once, with a bounded number of requests under way."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from typing import Any

from data_prep.refine.llm_client import LlmClient, RowFailed, RunStopped
from data_prep.refine.questions import Question, make_failed_row
from data_prep.refine.spending import CostLimitReached


MAX_FAILURES_IN_A_ROW = 100


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

    async def work() -> None:
        nonlocal failures_in_a_row
        for question in questions:  # all workers draw from one iterator
            try:
                row = await client.ask(question.messages, question.json_schema, question.make_row)
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
