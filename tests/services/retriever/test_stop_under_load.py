"""SIGTERM to a busy retriever: who asked is told, and the process ends before the launcher would kill it."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from research.schemas import ErrorBody
from tests.support.agent_services import await_condition


def test_who_asks_a_busy_retriever_that_ends_is_told(launch: Any) -> None:
    server = launch("retriever")
    # Half a minute of work at least.
    bodies = [{"queries": [f"{name}{number} " + "word " * 60 for number in range(512)]} for name in "abcdef"]

    def waiting() -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
        return float(
            next(line for line in lines if line.startswith("research_retriever_queue_depth ")).rsplit(" ", 1)[1]
        )

    def ask(body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{server.url}/search", json=body, timeout=120)

    with ThreadPoolExecutor(len(bodies)) as pool:
        asked = [pool.submit(ask, body) for body in bodies]
        await_condition("all are waiting", lambda: waiting() > 5 * 512)
        server.process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        server.process.wait(60)
        seconds = time.monotonic() - sent
        answers = [future.result() for future in asked]
    # unit/web/test_stop.py compares the limits; here a busy machine has more time for the batch under way.
    assert seconds < 30
    told = [answer for answer in answers if answer.status_code != 200]
    assert told, "there was more work than time"
    for answer in told:
        assert (answer.status_code, ErrorBody.model_validate_json(answer.content).error) == (503, "stopping")
        assert int(answer.headers["retry-after"]) > 0
