"""An order to load an adapter ends, whoever hangs, and the next one is not kept waiting by it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import services.policy.adapters.adapters as limits
from services.policy.adapters.adapters import AdapterFailedError, Adapters
from services.policy.adapters.checks import CONFIG_FILE, WEIGHTS_FILE


class Engine:
    """vLLM's engine client with one worker, which hangs as long as it is told to."""

    def __init__(self) -> None:
        self.hangs = False
        self.calls: list[str] = []

    async def collective_rpc(self, name: str, args: tuple[Any, ...]) -> list[str | None]:
        self.calls.append(args[0])
        if self.hangs:
            await asyncio.Event().wait()
        return [None]

    async def reset_prefix_cache(self, *, reset_running_requests: bool) -> None:
        self.calls.append("reset")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def source(tmp_path: Path) -> str:
    folder = tmp_path / "one"
    folder.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (folder / name).write_bytes(b"{}")
    return str(folder)


@pytest.fixture
def adapters(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Adapters:
    monkeypatch.setattr(limits, "require_adapter", lambda *_: None)  # tested elsewhere
    monkeypatch.setattr(limits, "require_finite", lambda _: None)
    models = SimpleNamespace(lora_requests={}, is_base_model=lambda _: False)
    return Adapters(engine, models, {}, tmp_path, 8)


def test_an_engine_that_hangs_keeps_no_order(
    adapters: Adapters, source: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ADD_SECONDS", 0.05)
    monkeypatch.setattr(limits, "DISCARD_SECONDS", 0.05)

    async def scenario() -> None:
        engine.hangs = True
        with pytest.raises(AdapterFailedError, match=r"did not answer within 0\.05 s"):
            await adapters.load("a", source)
        assert adapters.sources == {}
        engine.hangs = False
        await adapters.load("a", source)

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert list(adapters.sources) == ["a"]
    assert engine.calls == ["research_add_adapter", "remove_lora", "research_add_adapter", "reset"]


def test_a_disk_that_hangs_keeps_no_order_and_no_thread_but_one(
    adapters: Adapters, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, read = threading.Event(), list[str]()

    def hanging(_: Path) -> None:
        read.append(threading.current_thread().name)
        disk.wait(10)

    monkeypatch.setattr(limits, "require_finite", hanging)
    monkeypatch.setattr(limits, "READ_SECONDS", 0.2)

    async def scenario() -> None:
        for _ in range(3):
            with pytest.raises(AdapterFailedError, match=r"within 0\.2 s; does its disk answer"):
                await adapters.load("a", source)
        assert len(read) == 1, "others wait for the one that hangs, and give up"
        disk.set()
        monkeypatch.setattr(limits, "READ_SECONDS", 10)
        await adapters.load("a", source)

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert list(adapters.sources) == ["a"]
