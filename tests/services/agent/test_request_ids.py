"""One id from a client through policy and retriever, in what both answer and in the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from tests.support.agent_services import QUESTION, Services, await_condition

HEADER, COUNTER = "X-Request-ID", "research_refused_requests_total"
# More than the retriever of these tests gives (conftest.py), so that it refuses the search.
TOO_MANY = 60


def lines_of(log: Path, name: str) -> list[str]:
    """What a service has logged for a request."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("request") == name:
            found.append(entry["message"])
    return found


def test_an_answer_that_fails_has_the_id_of_both_logs(services: Services) -> None:
    def failed_and_logged() -> bool:
        # As below, either log may leave this one out.
        with services.http() as http:
            answered = http.post("/answer", json={"question": QUESTION, "top_k": TOO_MANY}, headers={HEADER: "mine-1"})
        assert answered.status_code == 503
        assert answered.headers[HEADER] == answered.json()["request_id"] == "mine-1"
        message = answered.json()["message"]
        assert "answered 422" in message
        assert "request mine-1" in message
        told = "POST '/answer' was answered with 503 (request mine-1)"
        return told in services.policy.log.read_text(errors="replace") and (
            "POST '/search' was answered with 422" in lines_of(services.retriever.log, "mine-1")
        )

    await_condition("both have logged it", failed_and_logged)


def test_a_refused_chat_is_in_the_policys_log(services: Services) -> None:
    def refused_and_logged() -> bool:
        # Other tests are refused so often that the log may leave this one out; not for longer than ten seconds.
        before = services.metric(COUNTER)
        with services.http() as http:
            refused = http.post("/v1/chat/completions", json={"messages": "none"}, headers={HEADER: "mine-2"})
        assert refused.status_code in (400, 422)
        assert refused.headers[HEADER] == "mine-2"
        assert services.metric(COUNTER) == before + 1
        line = f"was answered with {refused.status_code} (request mine-2)"
        return line in services.policy.log.read_text(errors="replace")

    await_condition("the policy has logged it", refused_and_logged)


def test_who_guesses_vllms_key_is_named_too(services: Services) -> None:
    """vLLM checks the key around all that a plugin may add."""

    def refused_and_logged() -> bool:
        before = services.metric(COUNTER)
        headers = {"Authorization": "Bearer guessed-by-a-stranger", HEADER: "mine-3"}
        refused = httpx.get(f"{services.policy.url}/v1/models", headers=headers)
        assert refused.status_code == 401
        assert refused.headers[HEADER] == "mine-3"
        assert services.metric(COUNTER) == before + 1
        return "was answered with 401 (request mine-3)" in services.policy.log.read_text(errors="replace")

    await_condition("the policy has logged it", refused_and_logged)
