"""An engine that is down is an outage of the retriever, not a loss of episodes: see `ServiceGate`."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from services.retriever.web import breaker as breaker_module
from services.retriever.web import upstream as upstream_module
from tests.support.search_engines import KEYS, SearchEngine
from tests.support.web_search import found, searching


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAVILY_API_KEY", KEYS["tavily"])
    monkeypatch.setattr(upstream_module, "_RETRIES", 0)
    monkeypatch.setattr(breaker_module, "_PAUSE_SECONDS", 0.2)


def status(client: httpx.Client, query: str) -> int:
    return client.post("/search", json={"query": query}).status_code


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


def test_an_engine_that_is_down_makes_the_retriever_unready_until_it_is_back(tmp_path: Path) -> None:
    engine = SearchEngine("tavily")
    with searching(tmp_path, engine) as client:
        found(client, "before")
        engine.fault = "500"
        for query in "ab":
            assert status(client, query) == 502
        assert client.get("/readyz").status_code == 200
        assert status(client, "c") == 502
        unready = client.get("/readyz")
        assert unready.status_code == 503
        assert "answered 500" in unready.json()["detail"]
        asked = len(engine.asked)
        assert status(client, "d") == 502
        assert "d" not in {sent.query for sent in engine.asked}  # nobody pays for that
        assert len(found(client, "before")) == 3
        until(lambda: client.get("/readyz").status_code == 503 and len(engine.asked) >= asked + 2)
        # Of this it is known that it can be answered.
        assert {sent.query for sent in engine.asked[asked:]} == {"before"}
        engine.fault = ""
        until(lambda: client.get("/readyz").status_code == 200)
        assert len(found(client, "d")) == 3
        assert client.get("/info").json()["web"]["recorded"] == 2
    assert len((tmp_path / "web" / "tavily.jsonl").read_text().splitlines()) == 2


def test_searches_alone_bring_an_engine_back_that_failed_from_the_start(tmp_path: Path) -> None:
    engine = SearchEngine("tavily", fault="500")
    with searching(tmp_path, engine) as client:
        assert [status(client, query) for query in "abcd"] == [502] * 4
        engine.fault = ""
        until(lambda: status(client, "d") == 200)
        # What was asked meanwhile, the last that failed, is recorded.
        assert {sent.query for sent in engine.asked} == set("abcd")
        asked = len(engine.asked)
        assert len(found(client, "c", 5)) == 3
    assert len(engine.asked) == asked


def test_what_waits_when_an_engine_begins_to_fail_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "_PAUSE_SECONDS", 60.0)
    engine = SearchEngine("tavily", fault="500", delay=1.0)
    with searching(tmp_path, engine, "web.at_once=4") as client, ThreadPoolExecutor(40) as threads:
        assert set(threads.map(lambda number: status(client, f"q{number}"), range(40))) == {502}
    assert len(engine.asked) <= 3 + 4


def test_one_query_that_always_fails_is_no_outage(tmp_path: Path) -> None:
    engine = SearchEngine("tavily", fault="500", fails_on="bad")
    with searching(tmp_path, engine) as client:
        assert [status(client, "bad") for _ in range(5)] == [502] * 5
        assert client.get("/readyz").status_code == 200
        assert len(found(client, "good")) == 3
        assert len(engine.asked) == 6


def test_several_queries_that_always_fail_shut_the_web_off_only_for_a_while(tmp_path: Path) -> None:
    engine = SearchEngine("tavily", fault="500", fails_on="bad")
    with searching(tmp_path, engine) as client:
        found(client, "good")
        assert [status(client, f"bad {number}") for number in range(3)] == [502] * 3
        until(lambda: status(client, "also good") == 200)


def test_an_engine_that_rejects_one_query_after_the_other_is_down(tmp_path: Path) -> None:
    """Each is told to the model as a search that finds nothing: for ever, nobody would notice."""
    engine = SearchEngine("tavily", fault="400", fails_on="bad")
    with searching(tmp_path, engine) as client:
        found(client, "good")
        assert [status(client, "bad") for _ in range(5)] == [422] * 5
        assert client.get("/readyz").status_code == 200, "one query is no outage, however often"
        assert [status(client, f"bad {number}") for number in (1, 2)] == [422] * 2
        assert client.get("/readyz").status_code == 503
        until(lambda: status(client, "also good") == 200)
        assert client.get("/readyz").status_code == 200


def test_a_budget_that_ends_while_an_engine_is_down_is_said(tmp_path: Path) -> None:
    engine = SearchEngine("tavily", fault="500")
    with searching(tmp_path, engine, "web.max_requests=4") as client:
        assert [status(client, query) for query in "abc"] == [502] * 3
        until(lambda: client.get("/readyz").status_code == 200)
        assert "only what is recorded is answered" in client.get("/readyz").json()["detail"]
        refused = client.post("/search", json={"query": "d"})
        assert (refused.status_code, refused.json()["error"]) == (402, "budget_spent")
    assert len(engine.asked) == 4
