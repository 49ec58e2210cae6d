"""The policy's view of the trainer, with the real trainer behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from research.config import load_settings
from services.policy.api.training import training_control_routes, training_routes
from services.web.auth import ADMIN_TOKEN_VARIABLE, require_bearer
from services.web.errors import install_error_handlers

TOKEN = "admin-for-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def page_of(trainer_url: str) -> TestClient:
    """The policy's routes without the policy: they need only its settings."""
    app = FastAPI()
    settings = load_settings(overrides=[f"endpoints.trainer_url={trainer_url}"])
    install_error_handlers(app)
    app.include_router(training_routes(settings))
    guard = Depends(require_bearer(TOKEN, ADMIN_TOKEN_VARIABLE))
    app.include_router(training_control_routes(settings), dependencies=[guard])
    return TestClient(app)


def test_it_tells_where_the_run_stands_and_starts_it(
    launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, TOKEN)
    nobody = "http://127.0.0.1:9"
    addresses = [f"endpoints.retriever_url={nobody}", f'endpoints.policy_urls=["{nobody}"]']
    trainer = launch("trainer", f"paths.runs={tmp_path}", *addresses, environment={ADMIN_TOKEN_VARIABLE: TOKEN})
    page = page_of(trainer.url)
    idle = page.get("/training").json()
    assert (idle["reachable"], idle["phase"], idle["steps"]) == (True, "idle", 8)
    assert idle["seconds_left"] > 60
    assert page.post("/admin/training").status_code == 401
    assert page.post("/admin/training", headers=HEADERS).json()["phase"] == "starting"
    again = page.post("/admin/training", headers=HEADERS)
    assert (again.status_code, again.json()["error"]) == (409, "conflict")
    assert "127.0.0.1" not in page.get("/training").text


def test_a_trainer_that_is_away_is_said(free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, TOKEN)
    page = page_of(f"http://127.0.0.1:{free_port()}")
    assert page.get("/training").json()["reachable"] is False
    refused = page.post("/admin/training", headers=HEADERS)
    assert (refused.status_code, refused.json()["error"]) == (502, "trainer_away")
    assert "research up" in refused.json()["message"]
