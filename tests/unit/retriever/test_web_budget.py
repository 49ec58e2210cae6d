"""The cap on requests and money: counted before anything is sent, kept over restarts, and never a silent end."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from research.settings.retriever import WebConfig
from services.retriever.web import upstream as upstream_module
from services.retriever.web.budget import Budget
from services.web.errors import HttpError
from tests.support.search_engines import KEYS, VARIABLES, SearchEngine
from tests.support.web_search import found, searching

BRAVE = ("retriever.backend=brave",)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in VARIABLES.items():
        monkeypatch.setenv(variable, KEYS[name])


def charged(path: Path, times: int, **limits: float) -> Budget:
    budget = Budget(path / "requests.jsonl", WebConfig.model_validate(limits))

    async def charge() -> None:
        # All come to their end first: a loop that ends with the first refusal cancels lines not yet written.
        for outcome in await asyncio.gather(*(budget.charge() for _ in range(times)), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    try:
        asyncio.run(charge())
    finally:
        budget.close()
    return budget


def test_money_and_requests_are_kept_over_restarts(tmp_path: Path) -> None:
    charged(tmp_path, 3, price=0.005)
    budget = charged(tmp_path, 2, price=0.01)
    assert (budget.requests, round(budget.spent, 9)) == (5, 0.035)


def test_a_line_that_is_spoilt_was_a_request_too(tmp_path: Path) -> None:
    charged(tmp_path, 3, price=0.005)
    path = tmp_path / "requests.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace("price", "prize") + lines[2])
    budget = charged(tmp_path, 1, price=0.01)
    assert (budget.requests, round(budget.spent, 9)) == (4, 0.03)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_requests": 3}, r"3 requests were sent and web\.max_requests = 3; raise it"),
        ({"price": 0.1, "max_spend": 0.3}, r"0\.3 of web\.max_spend = 0\.3 is spent .* raise web\.max_spend"),
        ({"price": 0.1, "max_spend": 0.39}, r"web\.max_spend"),
    ],
)
def test_the_fourth_request_is_refused_whoever_comes_together(
    tmp_path: Path, limits: dict[str, float], told: str
) -> None:
    with pytest.raises(HttpError, match=told) as caught:
        charged(tmp_path, 10, **limits)
    assert (caught.value.status, caught.value.error) == (402, "budget_spent")
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 3
    with pytest.raises(HttpError, match=told):
        charged(tmp_path, 1, **limits)
    charged(tmp_path, 1, **{name: 2 * value if name != "price" else value for name, value in limits.items()})


def test_a_cap_that_is_reached_refuses_what_is_new_and_answers_what_is_recorded(tmp_path: Path) -> None:
    engine = SearchEngine("brave")
    with engine.serving() as address:
        for _restart in range(2):
            with searching(tmp_path, address, *BRAVE, "web.max_requests=2", "web.price=0.005") as client:
                assert len(found(client, "a")) == len(found(client, "b")) == 3
                response = client.post("/search", json={"queries": ["a", "c"], "top_k": 3})
                assert (response.status_code, response.json()["error"]) == (402, "budget_spent")
                assert "Retry-After" not in response.headers
                assert "web.max_requests = 2; raise it" in response.json()["message"]
                ready = client.get("/readyz")
                assert ready.status_code == 200
                assert "of searches only what is recorded is answered" in ready.json()["detail"]
                web = client.get("/info").json()["web"]
                assert (web["requests"], web["spent"], web["recorded"]) == (2, 0.01, 2)
                assert "web.max_requests" in web["exhausted"]
                refused = client.post("/retrieve", json={"queries": ["c"], "topk": 3})
                assert refused.status_code == 402
    assert len(engine.asked) == 2


def test_every_try_counts_and_is_on_the_disk_before_it_is_sent(tmp_path: Path) -> None:
    engine = SearchEngine("brave", fault="500", times=2)
    counted: list[int] = []
    with searching(tmp_path, engine) as client:
        ledger = tmp_path / "web" / "brave-requests.jsonl"
        real = engine._fail

        def fail(request: object) -> object:
            counted.append(len(ledger.read_text().splitlines()))
            return real(request)  # type: ignore[arg-type]

        engine._fail = fail  # type: ignore[assignment,method-assign]
        assert len(found(client, "q")) == 3
    assert counted == [1, 2]
    assert len(engine.asked) == 3 == len(ledger.read_text().splitlines())
    assert all(json.loads(line)["entry"]["price"] == 0 for line in ledger.read_text().splitlines())


def test_a_cap_in_the_middle_of_the_tries_ends_them(tmp_path: Path) -> None:
    engine = SearchEngine("brave", fault="500")
    with searching(tmp_path, engine, "web.max_requests=2") as client:
        assert client.post("/search", json={"query": "q"}).status_code == 402
    assert len(engine.asked) == 2


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("tavily", 432, "This request exceeds your plan's set usage limit."),
        ("tavily", 433, "This request exceeds the pay-as-you-go limit."),
        ("serper", 400, "Not enough credits"),
        ("brave", 402, "Payment required"),
    ],
)
def test_an_account_that_is_spent_is_told_as_such(
    tmp_path: Path, name: str, status: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "_RETRIES", 0)
    engine = SearchEngine(name, fault=str(status), told=told)
    with searching(tmp_path, engine) as client:
        response = client.post("/search", json={"query": "q"})
        assert (response.status_code, response.json()["error"]) == (402, "account_spent")
        assert told in response.json()["message"]


@pytest.mark.parametrize("query", ["SUBSCRIPTION_TOKEN", "ü" * 400])
def test_what_a_refusal_is_about_does_not_depend_on_the_query(tmp_path: Path, query: str) -> None:
    engine = SearchEngine("brave", fault="422", told="the query is not valid")
    with searching(tmp_path, engine) as client:
        response = client.post("/search", json={"query": query})
        assert (response.status_code, response.json()["error"]) == (422, "query_rejected")
        engine.told = "SUBSCRIPTION_TOKEN_INVALID"
        response = client.post("/search", json={"query": query})
        assert (response.status_code, response.json()["error"]) == (409, "engine_refused")


def test_nothing_is_sent_that_cannot_be_counted(tmp_path: Path) -> None:
    engine = SearchEngine("brave")
    with searching(tmp_path, engine) as client:
        found(client, "a")
        with pytest.MonkeyPatch.context() as patch:

            def full(*_: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr("services.retriever.web.lines.os.fsync", full)
            response = client.post("/search", json={"query": "b"})
            assert (response.status_code, response.json()["error"]) == (507, "disk_full")
            assert "make room" in response.json()["message"]
        assert len(found(client, "b")) == 3
        assert client.get("/info").json()["web"]["requests"] == 2
    assert [sent.query for sent in engine.asked] == ["a", "b"]


def test_what_is_paid_for_is_kept_while_the_disk_of_the_record_is_full_and_nothing_else_is_sent(
    tmp_path: Path,
) -> None:
    engine = SearchEngine("brave")
    record = tmp_path / "of its own" / "record.jsonl"
    with searching(tmp_path, engine, f"web.record={record}") as client:
        found(client, "a")
        with pytest.MonkeyPatch.context() as patch:
            synced = os.fsync

            def full(file: int) -> None:
                if os.path.samestat(os.fstat(file), record.stat()):
                    raise OSError(28, "No space left on device")
                synced(file)

            patch.setattr("services.retriever.web.lines.os.fsync", full)
            for query in "bcb":
                response = client.post("/search", json={"query": query})
                assert (response.status_code, response.json()["error"]) == (507, "disk_full")
            assert [sent.query for sent in engine.asked] == ["a", "b"]
        assert len(found(client, "b", 5)) == len(found(client, "c", 5)) == 3
        assert client.get("/info").json()["web"]["requests"] == 3
    assert [sent.query for sent in engine.asked] == ["a", "b", "c"]
    assert [json.loads(line)["entry"]["query"] for line in record.read_text().splitlines()] == ["a", "b", "c"]
