"""Calls to vLLM's engine and workers that may fail, or never return.

A worker's exception must not cross vLLM's own call: with several workers the first one ends the call and leaves the
others' answers in their queues, where the next call reads them as its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class EngineHangsError(RuntimeError):
    """The engine did not return in time; what it does, or will have done, is not known."""


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Give the calls in the block so many seconds together; raises EngineHangsError if they take longer."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise EngineHangsError(f"the engine did not answer within {seconds:g} s") from error
        raise


class WorkerFailedError(RuntimeError):
    """A call failed in at least one worker; it has ended in all of them."""


async def call_workers(engine: Any, method: str, *arguments: Any) -> None:
    """Call a method of every worker and wait for all of them.

    Args:
        engine: vLLM's engine client.
        method: of vLLM's worker or of `ResearchWorker`; its result is dropped.
        arguments: plain data.

    Raises WorkerFailedError with the first worker's reason.
    """
    faults: list[str | None] = await engine.collective_rpc("research_try", args=(method, *arguments))
    for fault in faults:
        if fault is not None:
            raise WorkerFailedError(fault)
