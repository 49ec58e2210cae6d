"""An engine that is down is an outage of the retriever, not a loss of episodes: see `ServiceGate`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from services.retriever.web import breaker as breaker_module
from services.retriever.web import upstream as upstream_module
from tests.support.search_engines import KEYS, SearchEngine
from tests.support.web_search import found, searching


def test_an_engine_that_is_down_makes_the_retriever_unready_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAVILY_API_KEY", KEYS["tavily"])
    monkeypatch.setattr(upstream_module, "_RETRIES", 0)
    monkeypatch.setattr(breaker_module, "_PAUSE_SECONDS", 0.2)
    engine = SearchEngine("tavily")
    with searching(tmp_path, engine) as client:
        found(client, "before")
        engine.fault = "500"
        for query in "ab":
            assert client.post("/search", json={"query": query}).status_code == 502
        assert client.get("/readyz").status_code == 200
        assert client.post("/search", json={"query": "c"}).status_code == 502
        unready = client.get("/readyz")
        assert unready.status_code == 503
        assert "answered 500" in unready.json()["detail"]
        asked = len(engine.asked)
        assert client.post("/search", json={"query": "d"}).status_code == 502
        assert len(engine.asked) == asked  # nobody pays for that
        assert len(found(client, "before")) == 3
        until = time.monotonic() + 30
        while len(engine.asked) < asked + 2 and time.monotonic() < until:
            assert client.get("/readyz").status_code == 503
        assert {sent.query for sent in engine.asked[asked:]} == {"c"}
        engine.fault = ""
        while client.get("/readyz").status_code != 200 and time.monotonic() < until:
            pass
        assert len(found(client, "d")) == 3
