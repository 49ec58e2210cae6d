"""The edges of the real policy server: who may call, what it reads, how long it waits, and what refusing costs."""

from __future__ import annotations

import json
import socket

import psutil
import pytest

from research.config import load_settings
from services.policy.bodies.sizes import prompt_bytes
from services.web.bounded_http import HttpBounds
from tests.support.agent_services import Services
from tests.support.web_server import Watch, connect, read_all

CONTEXT = load_settings().model.max_model_len


def port_of(services: Services) -> int:
    return int(services.policy.url.rsplit(":", 1)[1])


@pytest.mark.parametrize("path", ["/answer", "/v1/models", "/", "/info", "/livez", "/metrics", "/docs", "/nothing"])
def test_pages_of_other_sites_reach_no_route(services: Services, path: str) -> None:
    with services.http() as http:
        for header, status in (({"host": "evil.example"}, 421), ({"origin": "http://evil.example"}, 403)):
            assert http.get(path, headers=header).status_code == status
        for name in ("localhost", "policy:8001", "10.1.2.3", socket.gethostname()):
            assert http.get("/livez", headers={"host": name}).status_code == 200


@pytest.mark.parametrize("path", ["/answer", "/tokenize", "/detokenize", "/v1/completions", "/admin/weights", "/pause"])
def test_a_token_is_asked_for_before_the_body_has_come(services: Services, path: str) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 3000000\r\n\r\n"
    )
    with connect(port_of(services), head.encode()) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 401")


def test_tokens_are_made_and_read_with_the_key(services: Services) -> None:
    with services.http() as http:
        made = http.post("/tokenize", json={"model": "policy", "prompt": "Who?"}).raise_for_status().json()["tokens"]
        read = http.post("/detokenize", json={"model": "policy", "tokens": made}).raise_for_status().json()["prompt"]
    assert read == "Who?"


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("/answer", 4_000_000),
        ("/tokenize", 1_000_000),
        ("/v1/completions", 4_000_000),
        ("/v1/chat/completions", prompt_bytes(CONTEXT)),
        ("/inference/v1/generate", prompt_bytes(CONTEXT)),
    ],
)
def test_bodies_are_bounded(services: Services, path: str, size: int) -> None:
    with services.http() as http:
        assert http.post(path, content=b" " * (size + 1)).status_code == 413


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 100_000,
        b"GET /livez HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"GET /livez HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % number for number in range(1_000)),
    ],
    ids=["line", "header", "headers"],
)
def test_an_endless_head_is_refused_while_it_arrives(services: Services, sent: bytes) -> None:
    with connect(port_of(services), sent) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 431")


def test_who_does_not_finish_a_request_is_cut_off(services: Services) -> None:
    seconds = HttpBounds().request_seconds
    with connect(port_of(services), b"POST /v1/completions HTTP/1.1\r\nHo") as connection:
        connection.settimeout(seconds + 30)
        assert read_all(connection).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/chat/completions", "messages"), ("/v1/completions", "stop"), ("/inference/v1/generate", "features")],
)
def test_a_list_of_wrong_values_costs_vllm_nothing(services: Services, path: str, field: str) -> None:
    # 1 MB of them took vLLM more than 1 GiB, 16 MB all the memory of the machine.
    body = json.dumps({"model": "policy", "prompt": "x", field: [1] * 80_000})
    server = psutil.Process(services.policy.process.pid)
    before = server.memory_info().rss
    with services.http() as http, Watch(services.policy.url) as watch:
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert len(answer.content) < 1000
    assert watch.longest < 30, "the event loop was held"
    assert server.memory_info().rss - before < 100 * 2**20


SAID = [
    {"role": "user", "content": "x"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
    {"type": "function_call", "call_id": "1", "name": "search", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "x"},
    {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
]


def test_of_a_responses_input_every_form_is_taken_and_the_first_wrong_item_is_named(services: Services) -> None:
    with services.http() as http:
        right = http.post("/v1/responses", json={"model": "policy", "input": SAID, "max_output_tokens": 2})
        assert right.status_code == 200, right.text
        for wrong, says in (
            (1, "it is no item"),
            ({}, "Field required"),
            ({"type": "function_call", "arguments": "{}"}, "call_id: Field required; name: Field required"),
            ({"role": "user", "content": [{}] * 200}, "content: "),
        ):
            answer = http.post("/v1/responses", json={"model": "policy", "input": [*SAID, wrong, *[{}] * 50]})
            assert answer.status_code == 400
            message = answer.json()["error"]["message"]
            assert message.startswith("input.6: ")
            assert says in message
            assert len(answer.content) < 400


def test_the_pages_load_nothing_from_elsewhere(services: Services) -> None:
    with services.http() as http:
        page = http.get("/docs").raise_for_status().text
        assert 'src="/static/swagger-ui-bundle.js"' in page
        assert http.get("/static/swagger-ui-bundle.js").status_code == 200
        assert "https://cdn" not in page
        assert http.get("/redoc").status_code == 404
