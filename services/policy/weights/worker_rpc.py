"""Calls to vLLM's workers that may fail.

A worker's exception must not cross vLLM's own call: with several workers the first one ends the call and leaves the
others' answers in their queues, where the next call reads them as its own.
"""

from __future__ import annotations

from typing import Any


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
