"""Each search engine in its documented form, over HTTP, behind the real `/search`; and what becomes of its faults."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from research.errors import ConfigurationError
from services.retriever.web import upstream as upstream_module
from tests.support.search_engines import KEYS, NAMES, NOTHING, VARIABLES, SearchEngine
from tests.support.web_search import found, searching, web_retriever


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in VARIABLES.items():
        monkeypatch.setenv(variable, KEYS[name])


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_answers_in_its_own_form_and_we_in_ours(tmp_path: Path, name: str) -> None:
    engine = SearchEngine(name)
    with searching(tmp_path, engine) as client:
        hits = found(client, "who painted it?")
        says = "page {}'s text says of" if name == "brave" else "page {} says of"
        assert hits == [
            {
                "id": f"https://site-{n}.example/{n}",
                "title": f"Page {n}",
                "text": f"What {says.format(n)} who painted it?.",
                "score": 1 / n,
                "fields": {"url": f"https://site-{n}.example/{n}"},
            }
            for n in (1, 2, 3)
        ]
        assert len(found(client, "two of them", 2)) == 2
        assert found(client, NOTHING) == []
        assert client.get("/readyz").json()["detail"] == f"the web by {name}"
        info = client.get("/info").json()
        assert (info["index"], info["web"]["requests"], info["web"]["recorded"]) == (name, 3, 3)
        assert info["limits"]["top_k"] == (10 if name == "serper" else 20)
        metrics = client.get("/metrics").text
        assert "research_retriever_web_requests 3.0" in metrics
        too_many = client.post("/search", json={"query": "q", "top_k": 21})
        assert (too_many.status_code, "top_k" in too_many.text) == (422, True)
    assert all(sent.headers["user-agent"] == "research-retriever/0.1 (team@site.example)" for sent in engine.asked)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_ours_but_query_and_key_is_sent(tmp_path: Path, name: str) -> None:
    engine = SearchEngine(name)
    with searching(tmp_path, engine) as client:
        response = client.post("/search", json={"query": "q"}, headers={"X-Request-ID": "secret-run-1.2.3"})
        assert response.status_code == 200
    [sent] = engine.asked
    assert "secret-run" not in str(sent)
    assert "x-request-id" not in sent.headers
    assert KEYS.get(name, "no key") not in sent.url


@pytest.mark.parametrize(
    ("name", "chars", "words"), [("brave", 400, 50), ("tavily", 400, None), ("wikipedia", 300, None)]
)
def test_a_query_without_end_is_cut_to_what_the_engine_takes(
    tmp_path: Path, name: str, chars: int, words: int | None
) -> None:
    engine = SearchEngine(name)
    with searching(tmp_path, engine) as client:
        assert len(found(client, "what is  it \n and " * 200)) == 3
        assert len(found(client, "x" * 4000)) == 3
    first, second = (sent.query for sent in engine.asked)
    assert first.startswith("what is it and what is it")
    assert len(first.split()) == (words or len(first.split()))
    assert len(second) == chars


def test_engines_that_all_failed_are_no_empty_result(tmp_path: Path) -> None:
    """SearXNG says so with 200 and an empty list."""
    engine = SearchEngine("searxng")
    with searching(tmp_path, engine) as client:
        assert found(client, NOTHING) == []
        engine.unresponsive = [["google", "CAPTCHA"], ["brave", "timeout"]]
        assert found(client, NOTHING) == []  # what was answered before, from the record
        response = client.post("/search", json={"query": NOTHING, "top_k": 4})
        assert response.status_code == 502
        assert "google: CAPTCHA; brave: timeout" in response.json()["message"]
        engine.answered = ["duckduckgo"]
        assert found(client, NOTHING, 4) == []  # one that is shut out for hours does not make it a failure


FAULTS = {
    "500": (502, "engine_failed"),
    "404": (502, "engine_failed"),
    "401": (409, "engine_refused"),
    "403": (409, "engine_refused"),
    "400": (422, "query_rejected"),
    "huge": (502, "engine_failed"),
    "html": (502, "engine_failed"),
    "not json": (502, "engine_failed"),
    "other json": (502, "engine_failed"),
    "wrong types": (502, "engine_failed"),
    "redirect": (502, "engine_failed"),
    # The last, since it asks for a pause.
    "busy for an hour": (503, "engine_busy"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_failing_engine_is_an_error_that_says_so(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "_RETRIES", 1)
    engine = SearchEngine(name)
    with searching(tmp_path, engine, "web.timeout=60") as client:
        for fault, expected in FAULTS.items():
            engine.fault, begun = fault, time.monotonic()
            response = client.post("/search", json={"query": fault, "top_k": 3})
            assert time.monotonic() - begun < 50
            assert (response.status_code, response.json()["error"]) == expected, response.text
            assert ("Retry-After" in response.headers) == (expected[0] == 503)
            assert len(response.text) < 3000
            assert "127.0.0.1" not in response.text
            engine.fault = ""
            if expected[0] != 503:
                assert len(found(client, fault)) == 3  # no fault is recorded
    assert all("/elsewhere" not in sent.url for sent in engine.asked)


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_drips_has_its_time(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "_RETRIES", 0)
    with searching(tmp_path, SearchEngine(name, fault="drip"), "web.timeout=0.5") as client:
        response = client.post("/search", json={"query": "q"})
        assert (response.status_code, response.json()["error"]) == (502, "engine_failed")


def test_an_engine_that_is_not_there_is_an_error(tmp_path: Path, free_port: Any) -> None:
    with searching(tmp_path, f"http://127.0.0.1:{free_port()}") as client:
        response = client.post("/search", json={"query": "q"})
        assert (response.status_code, response.json()["error"]) == (502, "engine_failed")


def test_a_short_pause_is_waited_for_by_all_and_a_long_one_told(tmp_path: Path) -> None:
    engine = SearchEngine("brave", fault="busy", times=1)
    with searching(tmp_path, engine, "web.timeout=60") as client:
        begun = time.monotonic()
        response = client.post("/search", json={"queries": ["a"]})
        assert response.status_code == 200
        assert time.monotonic() - begun >= 1
        assert len(engine.asked) == 2
        engine.fault, engine.times = "busy for an hour", 1
        begun = time.monotonic()
        assert client.post("/search", json={"query": "b"}).status_code == 503
        asked = len(engine.asked)
        refused = client.post("/search", json={"query": "c"})
        # The engine is not asked again before the time that it named.
        assert (refused.status_code, len(engine.asked)) == (503, asked)
        assert int(refused.headers["Retry-After"]) > 3000
        assert time.monotonic() - begun < 50  # less than web.timeout: it is not waited for in vain


def test_a_pause_that_begins_while_others_wait_for_their_turn_holds_them_too(tmp_path: Path) -> None:
    engine = SearchEngine("brave", fault="busy for some seconds", times=1)
    with searching(tmp_path, engine, "web.min_interval=2") as client:
        assert client.post("/search", json={"queries": ["a", "b", "c"]}).status_code == 200
    assert engine.began[1] - engine.began[0] >= 4
    assert len(engine.asked) == 4


def test_an_engine_that_is_busy_without_saying_how_long_is_left_alone_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "_PAUSE_SECONDS", 60.0)
    engine = SearchEngine("brave", fault="429")
    with searching(tmp_path, engine) as client:
        for query in "abc":
            refused = client.post("/search", json={"query": query})
            assert (refused.status_code, refused.json()["error"]) == (503, "engine_busy")
            assert int(refused.headers["Retry-After"]) > 30
    assert len(engine.asked) == 1


def test_each_pause_that_an_engine_does_not_bound_is_longer_than_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "_PAUSE_SECONDS", 0.3)
    engine = SearchEngine("brave", fault="429", times=3)
    with searching(tmp_path, engine, "web.timeout=30") as client:
        assert client.post("/search", json={"query": "a"}).status_code == 200
    gaps = [later - sooner for sooner, later in pairwise(engine.began)]
    assert [gap >= least for gap, least in zip(gaps, (0.3, 0.6, 1.2), strict=True)] == [True] * 3


def test_a_wiki_under_load_is_busy_though_it_says_200(tmp_path: Path) -> None:
    engine = SearchEngine("wikipedia", fault="maxlag")
    with searching(tmp_path, engine) as client:
        response = client.post("/search", json={"query": "q"})
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")


def test_requests_keep_their_distance_and_few_are_under_way(tmp_path: Path) -> None:
    engine = SearchEngine("serper", delay=0.3)
    with searching(tmp_path, engine, "web.min_interval=0.2", "web.at_once=2") as client:
        begun = time.monotonic()
        response = client.post("/search", json={"queries": [f"q{n}" for n in range(8)], "top_k": 1})
        assert response.status_code == 200
        texts = [hits[0]["text"] for hits in response.json()["results"]]
        assert texts == [f"What page 1 says of q{n}." for n in range(8)]
    assert engine.most_at_once == 2
    # A busy machine makes a request late, and the gap to the next one short, but none is early.
    assert [sent - begun >= 0.2 * place for place, sent in enumerate(sorted(engine.began))] == [True] * 8


def test_equal_queries_are_asked_once_however_many_wait(tmp_path: Path) -> None:
    engine = SearchEngine("tavily", delay=0.3)
    with searching(tmp_path, engine) as client:
        statuses: list[int] = []

        def ask() -> None:
            statuses.append(client.post("/search", json={"queries": ["same", "same"]}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 5
    assert len(engine.asked) == 1


def test_a_search_that_takes_too_long_is_given_up_and_what_was_sent_is_recorded(tmp_path: Path) -> None:
    engine = SearchEngine("tavily", delay=1.0)
    with searching(tmp_path, engine, "retriever.max_wait=0.3") as client:
        response = client.post("/search", json={"query": "slow"})
        assert (response.status_code, "Retry-After" in response.headers) == (429, True)
        until = time.monotonic() + 20
        while client.get("/info").json()["web"]["recorded"] < 1 and time.monotonic() < until:
            pass
        assert len(found(client, "slow", 5)) == 3
    assert len(engine.asked) == 1


def test_a_query_of_odd_blanks_is_none(tmp_path: Path) -> None:
    engine = SearchEngine("tavily")
    with searching(tmp_path, engine) as client:
        response = client.post("/search", json={"query": "\x1c\x1d"})
        assert (response.status_code, response.json()["error"]) == (422, "query_rejected")
    assert engine.asked == []


def test_who_is_too_many_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    engine = SearchEngine("tavily")
    with searching(tmp_path, engine, "retriever.max_queue_queries=4") as client:
        response = client.post("/search", json={"queries": list("abcde")})
        assert response.status_code == 422
        assert engine.asked == []
        assert client.post("/search", json={"queries": list("abcd")}).status_code == 200


def test_the_key_is_in_no_answer_no_record_and_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upstream_module, "_RETRIES", 0)
    engine = SearchEngine("brave", fault="repeats the key", times=1)
    with searching(tmp_path, engine) as client:
        response = client.post("/search", json={"query": "q"})
        assert response.status_code == 502
        assert "the key [key] is not valid" in response.json()["message"]
        found(client, "q")
        told = response.text + client.get("/info").text + client.get("/metrics").text + caplog.text
    assert engine.asked[0].headers["x-subscription-token"] == KEYS["brave"]
    files = [path.read_text() for path in (tmp_path / "web").iterdir()]
    assert len(files) == 2
    assert all(KEYS["brave"] not in text for text in [told, *files])


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_a_key_comes_from_the_environment_or_a_file_and_a_wrong_one_ends_the_run(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLES[name])
    with pytest.raises(ConfigurationError, match=f"{VARIABLES[name]} is not set"):
        web_retriever(tmp_path, name, "http://127.0.0.1:1")
    (tmp_path / "key").write_text(KEYS[name] + "\n")
    monkeypatch.setenv(f"{VARIABLES[name]}_FILE", str(tmp_path / "key"))
    with searching(tmp_path, SearchEngine(name)) as client:
        found(client, "q")
    (tmp_path / "key").write_text("of somebody else")
    with searching(tmp_path, SearchEngine(name)) as client:
        response = client.post("/search", json={"query": "other"})
        assert (response.status_code, response.json()["error"]) == (409, "engine_refused")


def test_what_is_missing_is_named_before_the_port_opens(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"web\.address: searxng has no public address"):
        web_retriever(tmp_path, "searxng", "")
    with pytest.raises(ConfigurationError, match=r"web\.address: it is not of the form"):
        web_retriever(tmp_path, "searxng", "search.host:8080")
    with pytest.raises(ConfigurationError, match=r"web\.contact: wikipedia asks"):
        web_retriever(tmp_path, "wikipedia", "", "web.contact=")
    with pytest.raises(ConfigurationError, match=r"max_spend: without a price"):
        web_retriever(tmp_path, "tavily", "", "web.max_spend=5")
    with pytest.raises(ConfigurationError, match="a user name or password"):
        web_retriever(tmp_path, "searxng", "http://me:pass@site.example")


def test_an_answer_without_end_is_cut_at_its_size(tmp_path: Path) -> None:
    engine = SearchEngine("tavily", fault="huge")
    with searching(tmp_path, engine, "web.timeout=60") as client:
        response = client.post("/search", json={"query": "q"})
        assert (response.status_code, response.json()["error"]) == (502, "engine_failed")
        assert "answered more than 4000000 bytes" in response.json()["message"]
    assert len(engine.asked) == 1  # and is not asked for again


def test_what_nobody_waits_for_any_longer_is_not_sent(tmp_path: Path) -> None:
    engine = SearchEngine("tavily", delay=1.0)
    with searching(tmp_path, engine, "retriever.max_wait=0.3", "web.at_once=2") as client:
        assert client.post("/search", json={"queries": list("abcdefgh")}).status_code == 429
        until = time.monotonic() + 20
        while client.get("/info").json()["web"]["recorded"] < 2 and time.monotonic() < until:
            pass
        assert client.get("/info").json()["web"]["requests"] == 2
    assert len(engine.asked) == 2
