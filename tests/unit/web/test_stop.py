"""A server that is stopped while requests are under way: each has its answer, or is told that it will have none."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI

from research.schemas import ErrorBody
from services.system import launcher
from services.web import server as web_server
from services.web.server import DRAIN_SECONDS
from tests.support.web_server import serving


def test_what_ends_in_time_is_answered_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "DRAIN_SECONDS", 1)
    app, begun = FastAPI(), threading.Semaphore(0)

    @app.get("/{seconds}")
    async def work(seconds: float) -> str:
        begun.release()
        await asyncio.sleep(seconds)
        return "done"

    with ThreadPoolExecutor() as pool:
        with serving(app) as port:
            asked = [pool.submit(httpx.get, f"http://127.0.0.1:{port}/{n}", timeout=60) for n in (0.5, 1000)]
            for _ in asked:
                assert begun.acquire(timeout=20)
            stopped = time.monotonic()
        assert time.monotonic() - stopped < 20
        quick, slow = (future.result() for future in asked)
    assert (quick.status_code, quick.json()) == (200, "done")
    assert slow.status_code == 503
    assert int(slow.headers["retry-after"]) > 0
    assert ErrorBody.model_validate_json(slow.content).error == "stopping"


def test_the_launcher_waits_longer_than_a_service_drains() -> None:
    # Closing what hangs takes two seconds more (`services.retriever.batching.pipeline`).
    assert DRAIN_SECONDS + 2 < launcher._STOP_SECONDS
