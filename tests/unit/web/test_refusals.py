"""Bodies of the allowed size, of the smallest wrong items, against `/answer` and the trainer: refusing is cheap.

The retriever's routes: tests/services/retriever/test_refusals.py.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from research.config import load_settings
from research.schemas import AnswerRequest, ErrorBody
from services.policy.api.answer import answer_routes
from services.policy.bodies.sizes import MAX_BODY_BYTES
from services.policy.service import PolicyService
from services.trainer.api.app import create_app
from services.trainer.controller import RunController
from services.trainer.run_dir.run_dir import RunDirectory
from services.web.auth import ADMIN_TOKEN_VARIABLE
from services.web.body_limit import BodyLimit
from services.web.errors import install_error_handlers
from services.web.json_bounds import fault_of
from tests.support.web_server import serving, smallest_wrong_items

BODIES = smallest_wrong_items(MAX_BODY_BYTES - 1000, ["question", "questions"])


@pytest.fixture(scope="module")
def answer_url() -> Iterator[str]:
    """The policy's own route in an app of its own: no engine, which no refused request reaches."""
    app = FastAPI()
    install_error_handlers(app, whole_app=False)
    app.include_router(answer_routes(PolicyService(load_settings(environment=False))))
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    with serving(app) as port:
        yield f"http://127.0.0.1:{port}/answer"


@pytest.mark.parametrize("name", BODIES)
def test_a_wrong_body_costs_a_few_times_its_size_and_its_answer_is_short(answer_url: str, name: str) -> None:
    headers = {"content-type": "application/json"}
    tracemalloc.start()
    try:
        response = httpx.post(answer_url, content=BODIES[name], headers=headers, timeout=120)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert response.status_code == 422
    assert len(response.content) < 1000
    assert ErrorBody.model_validate_json(response.content).error == "invalid_request"
    # Client and server are one process here: the body is in it a few times.
    assert peak < 8 * len(BODIES[name])


def test_the_first_faults_are_named_and_the_others_counted(answer_url: str) -> None:
    body = {f"{number}" + "x" * 10_000: 0 for number in range(20)}
    message = httpx.post(answer_url, json=body).json()["message"]
    assert message.count("there is no such field") == 3
    assert message.endswith("and 17 more")
    assert len(message) < 1000


def test_orders_to_the_trainer_do_not_read_a_body(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, "token-for-tests")
    settings = load_settings(overrides=[f"paths.runs={tmp_path_factory.mktemp('runs')}"], environment=False)
    app = create_app(RunController(settings), RunDirectory(settings.run_dir))
    body = BODIES["unknown keys"]
    with serving(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for order in ("start", "pause", "stop"):
            assert client.post(f"/run/{order}", content=body).status_code == 401
        authorized = {"authorization": "Bearer token-for-tests"}
        assert client.post("/run/pause", content=body, headers=authorized).status_code == 409
        for response, status in ((client.get("/nothing"), 404), (client.get("/run/start"), 405)):
            assert response.status_code == status
            ErrorBody.model_validate_json(response.content)


def values_of(value: object) -> int:
    """Items and fields, and one for each list and object, as the counter counts them."""
    if isinstance(value, dict):
        return 1 + max(0, len(value) - 1) + sum(map(values_of, value.values()))
    return 1 + max(0, len(value) - 1) + sum(map(values_of, value)) if isinstance(value, list) else 0


@pytest.mark.parametrize(
    "value",
    [
        {"questions": ["a, b, [c], {d}"] * 500},
        {"question": '\\",' * 20_000 + "\\"},
        {'a"[,': ["\\\\", '"', "\\", {"b": [[], {}]}] * 300},
        {"question": "∢," * 50_000},
    ],
)
def test_only_what_is_outside_of_strings_counts(value: object) -> None:
    body, count = json.dumps(value).encode(), values_of(value)
    assert fault_of(body, count) is None
    assert "more than" in str(fault_of(body, count - 1))
    assert fault_of(json.dumps(value, ensure_ascii=False).encode(), count) is None


def test_as_many_questions_as_are_allowed_are_not_too_many_values() -> None:
    body = json.dumps({"questions": ["Who, where, when?"] * 512, "seed": 1, "top_k": 3})
    assert fault_of(body.encode(), AnswerRequest.most_values) is None
    AnswerRequest.model_validate_json(body)
