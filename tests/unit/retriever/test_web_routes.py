"""The routes over the web: other projects' clients, and pages of other sites."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.search_engines import KEYS, VARIABLES, SearchEngine
from tests.support.web_search import found, searching


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in VARIABLES.items():
        monkeypatch.setenv(variable, KEYS[name])


def test_other_projects_clients_search_the_web_too(tmp_path: Path) -> None:
    engine = SearchEngine("serper")
    with searching(tmp_path, engine) as client:
        response = client.post("/retrieve", json={"queries": ["a", " ", "b"], "topk": 50})
        assert response.status_code == 200
        results = response.json()["result"]
        assert [len(each) for each in results] == [3, 0, 3]
        assert results[0][0]["contents"] == '"Page 1"\nWhat page 1 says of a.'
        assert results[0][0]["url"] == "https://site-1.example/1"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_spends_nothing_be_it_by_a_link(tmp_path: Path, site: str) -> None:
    engine = SearchEngine("brave")
    link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    with searching(tmp_path, engine) as client:
        refused = client.get("/api/search", params={"query": "q"}, headers=link)
        assert (refused.status_code, refused.json()["error"]) == (403, "unknown_origin")
        assert engine.asked == []
        typed = client.get("/api/search", params={"query": "q"}, headers={**link, "sec-fetch-site": "none"})
        assert len(typed.json()["topk"]) == 3
        assert len(client.get("/api/search", params={"query": "q"}).json()["topk"]) == 3


def test_a_batch_that_takes_longer_than_max_wait_is_answered_in_portions(tmp_path: Path) -> None:
    engine = SearchEngine("brave")
    pace = ("web.min_interval=0.1", "web.timeout=2", "retriever.max_wait=6")
    with searching(tmp_path, engine, *pace) as client:
        queries = [f"q{n}" for n in range(80)]
        response = client.post("/retrieve", json={"queries": queries, "topk": 1})
        assert response.status_code == 200
        contents = [hits[0]["contents"] for hits in response.json()["result"]]
        assert [query in told for query, told in zip(queries, contents, strict=True)] == [True] * 80


def test_what_is_recorded_is_read_once_for_a_request_that_waits_for_a_place(tmp_path: Path) -> None:
    engine = SearchEngine("brave", delay=1.0)
    with searching(tmp_path, engine, "retriever.max_queue_queries=2") as client, ThreadPoolExecutor(2) as threads:
        found(client, "before")
        first = threads.submit(client.post, "/search", json={"queries": ["a", "b"]})
        until = time.monotonic() + 20
        while len(engine.asked) < 3 and time.monotonic() < until:
            pass
        response = client.post("/retrieve", json={"queries": ["before", "c"], "topk": 3})
        assert [response.status_code, first.result().status_code] == [200, 200]
        assert "research_retriever_web_replayed 1.0" in client.get("/metrics").text
