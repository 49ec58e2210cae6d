"""The trainer's server by itself: status, guarded control, and what it says when the other services are missing."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.support.browser import browser_page, require_browser

TOKEN = "admin-for-tests"


@pytest.fixture(scope="module")
def trainer(launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    runs = tmp_path_factory.mktemp("runs")
    nobody = "http://127.0.0.1:9"
    return launch(
        "trainer",
        f"paths.runs={runs}",
        f"endpoints.retriever_url={nobody}",
        f'endpoints.policy_urls=["{nobody}"]',
        "trainer.outage_timeout=3",
        environment={"RESEARCH_ADMIN_TOKEN": TOKEN},
    )


def test_status_page_and_probes(trainer: Any) -> None:
    with trainer.client() as client:
        assert client.get("/livez").json() == {"status": "alive"}
        assert client.get("/readyz").json()["status"] == "ready"
        assert client.get("/status").json()["phase"] == "idle"
        assert client.get("/status").json()["number_format"].startswith("number format: ")
        assert client.get("/steps").json() == []
        assert client.get("/evaluations").json() == {}
        assert "ReSearch trainer" in client.get("/").text
        assert 'research_trainer_phase{phase="idle"} 1.0' in client.get("/metrics").text
        assert client.get("/training.png").status_code == 404


def test_the_page_runs_its_own_script_only_and_no_page_runs_that_of_others(trainer: Any) -> None:
    with trainer.client() as client:
        rules = client.get("/").headers["content-security-policy"]
        assert rules.startswith("default-src 'none'; script-src 'sha256-")
        assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
        assert "/status" in client.get("/openapi.json").json()["paths"]


@require_browser
def test_the_page_works_under_its_rules(trainer: Any) -> None:
    with browser_page(trainer.url) as page:
        page.wait_for_function("document.getElementById('phase').textContent === 'idle'")


@pytest.mark.parametrize("path", ["/run/start", "/run/pause", "/run/stop"])
@pytest.mark.parametrize("token", [None, "wrong"])
def test_control_needs_the_admin_token(trainer: Any, path: str, token: str | None) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with trainer.client() as client:
        answer = client.post(path, headers=headers)
    assert answer.status_code == 401
    assert "RESEARCH_ADMIN_TOKEN" in answer.json()["message"]


def test_without_a_token_there_is_no_control(launch: Any, tmp_path: Any) -> None:
    server = launch("trainer", f"paths.runs={tmp_path}", environment={"RESEARCH_ADMIN_TOKEN": ""})
    with server.client() as client:
        assert client.post("/run/start").status_code == 404


def test_orders_that_make_no_sense_are_409(trainer: Any) -> None:
    with trainer.client() as client:
        for path in ("/run/pause", "/run/stop"):
            answer = client.post(path, headers={"Authorization": f"Bearer {TOKEN}"})
            assert (answer.status_code, answer.json()["error"]) == (409, "conflict")


def test_a_run_without_its_services_fails_with_their_names(trainer: Any) -> None:
    with trainer.client() as client:
        client.post("/run/start", headers={"Authorization": f"Bearer {TOKEN}"}).raise_for_status()
        status = await_phase(client, "failed")
    assert "the policy" in status["error"]
    assert "does not answer" in status["error"]
    assert "waited 3 s (trainer.outage_timeout)" in status["error"]


def await_phase(client: httpx.Client, phase: str, timeout: float = 90) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        status: dict[str, Any] = client.get("/status").json()
        if status["phase"] == phase:
            return status
        time.sleep(0.2)
    pytest.fail(f"phase {phase!r} did not come; the last status was {status}")
