"""Who may call which route: what the apps say is what docs/routes.md says, and a new order without a guard is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI

from research.config import load_settings
from research.settings import Settings
from services.policy.plugin import ResearchPlugin
from services.policy.settings_variable import SETTINGS_VARIABLE
from tests.support.forked import run
from tests.support.routes import FILE, OPEN, SECRETS, Route, retriever_app, routes_of, trainer_app, unguarded


def plugin_app(settings: Settings) -> FastAPI:
    """The part of the policy's app that is ours."""
    app = FastAPI()
    ResearchPlugin().attach_router(app)
    return app


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_dir: Path) -> Settings:
    overrides = [f"paths.runs={tmp_path}", f"paths.data={data_dir}"]
    settings = load_settings(overrides=overrides, environment=False)
    for name, value in {**SECRETS, SETTINGS_VARIABLE: settings.model_dump_json()}.items():
        monkeypatch.setenv(name, value)
    return settings


def test_the_list_of_routes_is_what_the_apps_do(data_dir: Path, service_environment: dict[str, str]) -> None:
    # In a process of its own, because vLLM's app is made from the environment.
    made = run(["-c", "from tests.support.routes import main; main([])"], service_environment)
    assert made.returncode == 0, made.stderr
    listed = made.stdout[made.stdout.index("# Every route") :]
    assert listed == FILE.read_text(encoding="utf-8"), "run `python -m tests.support.routes --write`"


@pytest.mark.parametrize(
    ("service", "make"), [("retriever", retriever_app), ("policy", plugin_app), ("trainer", trainer_app)]
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_new_order_without_a_guard_is_found(
    settings: Settings, service: str, make: Callable[[Settings], FastAPI], method: str
) -> None:
    app = make(settings)
    assert not unguarded(routes_of(service, app))
    app.add_api_route("/run/new/{name}", lambda: "done", methods=[method])
    assert unguarded(routes_of(service, app)) == [Route(service, "/run/new/{name}", method, OPEN)]


def test_without_an_admin_token_there_are_no_weight_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    def paths() -> set[str]:
        return set(plugin_app(load_settings()).openapi()["paths"])

    monkeypatch.setenv(SETTINGS_VARIABLE, load_settings().model_dump_json())
    monkeypatch.setenv("RESEARCH_ADMIN_TOKEN", "secret-for-tests")
    guarded = {path for path in paths() if path.startswith("/admin") or path in ("/pause", "/resume")}
    assert {"/admin/weights", "/admin/training", "/pause"} <= guarded
    monkeypatch.delenv("RESEARCH_ADMIN_TOKEN")
    assert not paths() & guarded
    assert "/answer" in paths()
