"""Asks many questions concurrently, for `research eval`, the trainer's evaluations and `research bench`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from research.errors import ResearchError, ServiceError, ServiceRefusalError

Item = TypeVar("Item")
Result = TypeVar("Result")


async def ask_each(
    items: Sequence[Item],
    ask: Callable[[Item, int], Awaitable[Result]],
    *,
    concurrency: int,
    max_failures_in_a_row: int | None = None,
) -> list[Result | ServiceError]:
    """Call `ask` with each item and its index; returns the results in order, with the error where a service failed.

    Raises:
        ServiceError: so many items in a row failed that the service must be unavailable.
        ServiceRefusalError: a service refuses for good, at once.
        ResearchError: any other error of this project, at once.
    """
    slots = asyncio.Semaphore(concurrency)
    in_a_row = 0

    async def one(item: Item, index: int) -> Result | ServiceError:
        nonlocal in_a_row
        async with slots:
            try:
                result = await ask(item, index)
            except ServiceRefusalError:
                raise
            except ServiceError as error:
                in_a_row += 1
                if max_failures_in_a_row is not None and in_a_row >= max_failures_in_a_row:
                    raise ServiceError(
                        f"{in_a_row} questions in a row could not be asked; the answers so far are kept, run it again "
                        f"to continue. The last reason: {error}"
                    ) from error
                return error
            in_a_row = 0
            return result

    tasks: list[asyncio.Task[Result | ServiceError]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(one(item, index)) for index, item in enumerate(items)]
    except* ResearchError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
