"""What the retriever refuses has an id in answer, body and log, and is counted by reason."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from research.schemas import ErrorBody

HEADER = "X-Request-ID"


@pytest.fixture(scope="module")
def retriever(launch: Any) -> Any:
    return launch("retriever")


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/search", {"query": "a", "top_k": 1000}, 422, "invalid_request"),
        ("/search", {"query": "x" * 5_000_000}, 413, "body_too_large"),
        ("/retrieve", {}, 422, "invalid_request"),
        ("/nowhere", {}, 404, "not_found"),
        ("/livez", {}, 405, "method_not_allowed"),
    ],
)
def test_a_refused_request_can_be_found(
    retriever: Any, path: str, body: dict[str, Any], status: int, reason: str
) -> None:
    name = f"found-{reason}-{path.strip('/')}"
    counter = f'research_refused_requests_total{{reason="{reason}",status="{status}"}} '

    def count() -> float:
        text = httpx.get(f"{retriever.url}/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(counter))

    before = count()
    answered = httpx.post(retriever.url + path, json=body, headers={HEADER: name}, timeout=60)
    assert answered.status_code == status
    assert answered.headers[HEADER] == ErrorBody.model_validate_json(answered.content).request_id == name
    assert count() == before + 1
    if path != "/livez":  # probes are not logged
        logged = [json.loads(line) for line in retriever.log.read_text().splitlines()]
        assert [line["message"] for line in logged if line.get("request") == name] == [
            f"POST '{path}' was answered with {status}"
        ]
