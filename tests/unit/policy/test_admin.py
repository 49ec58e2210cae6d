"""The weight routes by themselves; vLLM's engine client is a recorder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from research.config import load_settings
from services.policy.api.admin import admin_routes
from services.policy.service import PolicyService
from services.policy.weights.updates import WeightUpdates
from services.web.auth import admin_guard
from services.web.errors import install_error_handlers


@pytest.mark.parametrize(
    ("fault", "busy", "status"), [("half loaded", False, 409), (None, True, 409), (None, False, 200)]
)
def test_half_loaded_weights_cannot_be_resumed_by_hand(
    fault: str | None, busy: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = []

    async def resume() -> None:
        resumed.append(True)

    monkeypatch.setenv("RESEARCH_ADMIN_TOKEN", "secret-for-tests")
    app = FastAPI()
    install_error_handlers(app)
    service = PolicyService(load_settings())
    service.updates = cast(WeightUpdates, SimpleNamespace(fault=fault, busy=busy))
    app.include_router(admin_routes(service), dependencies=admin_guard())
    app.state.engine_client = SimpleNamespace(resume_generation=resume)
    answer = TestClient(app).post("/resume", headers={"Authorization": "Bearer secret-for-tests"})
    assert answer.status_code == status, answer.text
    assert bool(resumed) == (status == 200)
    assert fault is None or fault in answer.text
    assert TestClient(app).post("/resume").status_code == 401
