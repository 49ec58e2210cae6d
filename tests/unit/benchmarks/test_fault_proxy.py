"""The proxy of the fault bench does to requests what it says, and nothing when there is no fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from benchmarks.faults.system.proxy import NONSENSE, Mode, NetworkFault, Proxy
from tests.support.web_server import serving

TEXT = "an answer of some length"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    app = FastAPI()

    @app.get("/readyz")
    def readyz() -> str:
        return TEXT

    @app.post("/work")
    def work(body: dict[str, str]) -> dict[str, str]:
        return body

    with serving(app) as port:
        proxy = Proxy(port)
        yield proxy
        proxy.close()


def ask(proxy: Proxy, path: str = "/work", seconds: float = 60) -> httpx.Response:
    with httpx.Client(base_url=proxy.url, timeout=seconds, trust_env=False) as client:
        return client.get(path) if path == "/readyz" else client.post(path, json={"text": TEXT})


def test_without_a_fault_everything_passes_and_is_counted(proxy: Proxy) -> None:
    with httpx.Client(base_url=proxy.url, trust_env=False) as client:  # over one connection
        assert [client.post("/work", json={"text": TEXT}).json() for _ in range(3)] == [{"text": TEXT}] * 3
    assert ask(proxy, "/readyz").json() == TEXT
    assert (proxy.counts["/work"], proxy.counts["/readyz"]) == (3, 1)


def test_each_fault_of_answers_meets_work_and_passes_checks_of_readiness(proxy: Proxy) -> None:
    proxy.inject(NetworkFault(Mode.STATUS, status=503))
    assert ask(proxy).status_code == 503
    assert ask(proxy, "/readyz").status_code == 200
    for variant, nonsense in enumerate(NONSENSE):
        proxy.inject(NetworkFault(Mode.NONSENSE, variant=variant))
        answer = ask(proxy)
        assert (answer.status_code, answer.content) == (200, nonsense)
    proxy.inject(NetworkFault(Mode.CUT))
    with pytest.raises(httpx.TransportError):
        ask(proxy)
    proxy.inject(NetworkFault(Mode.DRIP))
    with pytest.raises(httpx.TimeoutException):
        httpx.Client(base_url=proxy.url, timeout=httpx.Timeout(5, read=0.2)).post("/work", json={"text": TEXT})
    proxy.inject(NetworkFault(Mode.DELAY, seconds=0.3))
    begun = time.monotonic()
    assert ask(proxy).json() == {"text": TEXT}
    assert time.monotonic() - begun >= 0.3
    proxy.heal()
    assert ask(proxy).json() == {"text": TEXT}


def test_a_black_hole_swallows_also_what_was_under_way_and_gives_nothing_back(proxy: Proxy) -> None:
    proxy.inject(NetworkFault(Mode.BLACK_HOLE))
    with pytest.raises(httpx.ReadTimeout):
        ask(proxy, "/readyz", seconds=0.3)
    deadline = time.monotonic() + 60
    while not proxy.counts["swallowed"]:  # its thread may be late
        assert time.monotonic() < deadline
        time.sleep(0.01)
    proxy.heal()
    assert ask(proxy).status_code == 200
    assert proxy.counts["swallowed"] == 1


def test_refused_connections_are_refused_and_those_that_stand_are_broken(proxy: Proxy) -> None:
    with httpx.Client(base_url=proxy.url, trust_env=False) as client:
        assert client.get("/readyz").status_code == 200
        proxy.inject(NetworkFault(Mode.REFUSE))
        with pytest.raises(httpx.TransportError):
            client.get("/readyz")
        with pytest.raises(httpx.ConnectError):
            ask(proxy)
        proxy.heal()
        assert client.get("/readyz").status_code == 200


def test_a_fault_begins_at_the_very_request_that_was_named(proxy: Proxy) -> None:
    reached = threading.Event()

    def begin() -> None:
        proxy.inject(NetworkFault(Mode.STATUS, status=500))
        reached.set()

    proxy.at_request("/work", 3, begin)
    assert [ask(proxy).status_code for _ in range(4)] == [200, 200, 500, 500]
    assert reached.is_set()
