"""The weight routes by themselves; vLLM's engine client is a recorder."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.policy.admin import attach_admin_routes
from services.web.problems import install_problem_handler


@pytest.mark.parametrize(("fault", "status"), [("half loaded", 409), (None, 200)])
def test_half_loaded_weights_cannot_be_resumed_by_hand(
    fault: str | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = []

    async def resume() -> None:
        resumed.append(True)

    monkeypatch.setenv("RESEARCH_ADMIN_TOKEN", "secret")
    app = FastAPI()
    install_problem_handler(app)
    assert attach_admin_routes(app)
    app.state.research_updates = SimpleNamespace(fault=fault)
    app.state.engine_client = SimpleNamespace(resume_generation=resume)
    answer = TestClient(app).post("/resume", headers={"Authorization": "Bearer secret"})
    assert answer.status_code == status, answer.text
    assert bool(resumed) == (fault is None)
    assert fault is None or fault in answer.text
    assert TestClient(app).post("/resume").status_code == 401
