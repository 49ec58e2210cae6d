"""A policy server that answers nobody is not ready."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from research.config import load_settings
from services.policy import engine_watch
from services.policy.engine_watch import EngineWatch
from services.policy.service import PolicyService
from services.policy.weights.updates import WeightUpdates


class Engine:
    """vLLM's engine client: paused or not, and answering or not."""

    def __init__(self) -> None:
        self.paused = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def check_health(self) -> None:
        pass

    async def is_paused(self) -> bool:
        await self.answers.wait()
        return self.paused


def opened(engine: Engine, *, busy: bool = False) -> PolicyService:
    service = PolicyService(load_settings())
    service._engine, service._watch = engine, EngineWatch(engine)
    service.updates = cast(WeightUpdates, SimpleNamespace(fault=None, busy=busy, version="3"))
    return service


class Clock:
    """What `time` is to the watch; a test moves it."""

    now = 1.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(engine_watch, "_ANSWER_SECONDS", 0.03)
    monkeypatch.setattr(engine_watch, "time", clock := Clock())
    return clock


async def standing_later(service: PolicyService, clock: Clock) -> tuple[str, str]:
    before = await service.health()
    assert before.status == "ready"
    clock.now += engine_watch.PATIENCE_SECONDS + 1
    after = await service.health()
    return after.status, after.detail


def test_who_is_paused_for_long_is_not_ready_until_resumed(clock: Clock) -> None:
    async def scenario() -> None:
        engine = Engine()
        service = opened(engine)
        engine.paused = True
        status, detail = await standing_later(service, clock)
        assert (status, "paused for" in detail, "POST /resume" in detail) == ("failed", True, True)
        engine.paused = False
        assert (await service.health()).status == "ready"
        engine.paused = True
        assert (await service.health()).status == "ready"  # the time begins anew

    asyncio.run(scenario())


def test_an_engine_that_does_not_answer_for_long_is_not_ready_until_it_does(clock: Clock) -> None:
    async def scenario() -> None:
        engine = Engine()
        service = opened(engine)
        engine.answers.clear()
        status, detail = await standing_later(service, clock)
        assert (status, "has not answered" in detail) == ("failed", True)
        engine.answers.set()
        assert (await service.health()).status == "ready"

    asyncio.run(scenario())


def test_an_update_under_way_is_no_such_silence(clock: Clock) -> None:
    async def scenario() -> None:
        engine = Engine()
        engine.answers.clear()
        assert (await standing_later(opened(engine, busy=True), clock))[0] == "ready"

    asyncio.run(scenario())


def test_an_engine_that_is_silent_for_very_long_is_stuck_until_it_answers(clock: Clock) -> None:
    async def scenario() -> None:
        engine = Engine()
        service = opened(engine)
        assert service.stuck is None  # vLLM has not opened it yet
        service.is_open = True
        engine.answers.clear()
        most = engine_watch.STUCK_SECONDS
        for seconds, words in ((0, ""), (most, ""), (1, f"the engine has not answered for {most + 1} s")):
            clock.now += seconds
            await asyncio.sleep(0)
            assert (service.stuck or "").startswith(words)
            assert bool(service.stuck) == bool(words)
        engine.answers.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert service.stuck is None

    asyncio.run(scenario())
