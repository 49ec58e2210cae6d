"""Whatever a client asks for, it does not go before those who ask for nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.policy.fair_priority import nobody_first
from services.policy.weights.prefix_salt import salt_by_version


class Engine:
    def __init__(self) -> None:
        self.added: list[tuple[Any, ...]] = []

    async def add_request(self, request_id: str, prompt: Any, params: Any, *, priority: int = 0, more: int = 0) -> str:
        self.added.append((request_id, prompt, params, priority, more))
        return "queue"


@pytest.mark.parametrize(("asked", "taken"), [(-1, 0), (-(2**70), 0), (0, 0), (1, 1), (7, 7), (2**70, 2**31 - 1)])
def test_a_priority_below_0_is_0(asked: int, taken: int) -> None:
    engine = Engine()
    nobody_first(engine)
    salt_by_version(engine, lambda: "3")
    assert asyncio.run(engine.add_request("a", "text", "params", priority=asked, more=5)) == "queue"
    assert asyncio.run(engine.add_request("b", "text", params="params")) == "queue"
    assert engine.added == [("a", "text", "params", taken, 5), ("b", "text", "params", 0, 0)]
