"""Work that needs services is repeated when a service fails, with pauses, and not for ever."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from research.errors import ServiceError
from services.trainer import run as run_module
from services.trainer.run import Run


def outcome(
    faults: list[ServiceError], was_down: bool = False, waits: list[None] | None = None
) -> tuple[str, float, int]:
    """What becomes of work that meets these faults and then succeeds, in how many seconds, and how often it began.

    `waits` gets an entry whenever the end of an outage is waited for.
    """
    begun = 0
    waits = [] if waits is None else waits

    async def work() -> str:
        nonlocal begun
        begun += 1
        if begun <= len(faults):
            raise faults[begun - 1]
        return "done"

    async def wait_until_ready(_: object) -> bool:
        waits.append(None)
        return was_down

    fake = SimpleNamespace(
        rollouts=SimpleNamespace(gate=SimpleNamespace(wait_until_ready=wait_until_ready)),
        settings=SimpleNamespace(grpo=SimpleNamespace(service_retries=3)),
        status=SimpleNamespace(log=lambda line: None),
    )
    started = time.monotonic()
    try:
        said = asyncio.run(Run.through_outages(cast(Any, fake), work))
    except ServiceError as error:
        said = str(error)
    return said, time.monotonic() - started, begun


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_PAUSE_SECONDS", 0.1)


def test_faults_that_pass_within_some_seconds_cost_nothing() -> None:
    faults = [ServiceError("no answer"), ServiceError("an error", 500), ServiceError("another", 503)]
    said, seconds, begun = outcome(faults)
    assert (said, begun) == ("done", 4)
    assert seconds >= 0.1 + 0.2 + 0.4, "it was tried without pauses"


def test_what_fails_again_and_again_and_what_is_refused_ends_it() -> None:
    assert outcome([ServiceError(f"fault {number}", 500) for number in range(9)])[::2] == ("fault 3", 4)
    waits: list[None] = []
    assert outcome([ServiceError("refused", 422)], waits=waits)[::2] == ("refused", 1)
    assert not waits, "no outage explains what was refused"


def test_no_pause_is_longer_than_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_PAUSE_SECONDS", 1e6)
    monkeypatch.setattr(run_module, "_LONGEST_PAUSE_SECONDS", 0.1)
    assert outcome([ServiceError("an error", 500)])[::2] == ("done", 2)


def test_an_outage_is_no_failure_and_needs_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_PAUSE_SECONDS", 60.0)
    said, seconds, begun = outcome([ServiceError("gone")] * 9, was_down=True)
    assert (said, begun) == ("done", 10)
    assert seconds < 60
