"""What is refused before vLLM reads it, and that what is right reaches vLLM byte by byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from services.policy.bodies.cheap_refusals import CheapRefusals
from services.web.body_limit import BodyLimit
from tests.support.web_server import serving

LIMIT = 8_000_000
CHAT, COMPLETIONS, GENERATE, DETOKENIZE, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/inference/v1/generate",
    "/detokenize",
    "/v1/responses",
)


seen: list[object] = []


def item_fault(item: object) -> str | None:
    """In place of vLLM's model of a request, which takes many seconds to import; a test of the policy has that."""
    seen.append(item)
    return None if isinstance(item, dict) and "content" in item else "it is wrong"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT"])
    async def digest(request: Request) -> str:
        return hashlib.sha256(await request.body()).hexdigest()

    app.add_middleware(CheapRefusals, max_model_len=768, item_fault=item_fault)
    app.add_middleware(BodyLimit, max_bytes=LIMIT)
    with serving(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [1] * 10_001}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "stop": ["a"] * 20_000}),
        (CHAT, {"messages": {str(number): 0 for number in range(20_000)}}),
        (COMPLETIONS, {"prompt": ["a"] * 20_000}),
        (COMPLETIONS, {"prompt": [1] * 10_001 + ["a"]}),
        (COMPLETIONS, {"prompt": [1] * 10_001 + [True]}),
        (COMPLETIONS, {"prompt": [[1]] * 10_001}),
        (COMPLETIONS, {"prompt": [-1] * 10_001}),
        (COMPLETIONS, {"prompt": [[-1] * 1000] * 20}),
        (DETOKENIZE, {"tokens": [1] * 10_001 + [2**31]}),
        (COMPLETIONS, {"prompt": [[1] * 20_000, ["a"]]}),
        (COMPLETIONS, {"prompt": [1] * 10_001, "stop": [1] * 10_001}),
        (GENERATE, {"prompt": [1] * 10_001}),
        (GENERATE, {"token_ids": [1] * 1_000_001}),
        (GENERATE + "/", {"token_ids": [{}] * 10_001}),
        (DETOKENIZE, [1] * 10_001),
        ("/tokenize", {"prompt": [1] * 10_001}),
        (RESPONSES, {"tools": ["a"] * 1_100}),
        (RESPONSES + "/render", {"input": [{"content": [{}] * 1_100}]}),
    ],
)
def test_too_many_values_are_refused_in_openais_form(url: str, path: str, body: Any) -> None:
    answer = httpx.post(url + path, json=body, timeout=60)
    assert answer.status_code == 400
    assert "values" in answer.json()["error"]["message"]
    assert len(answer.content) < 300


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "Is [1, 2, 3] " * 20_000}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}] * 1_000}),
        (COMPLETIONS, {"prompt": [7] * 200_000}),
        (COMPLETIONS, {"prompt": [[7] * 2_000] * 100}),
        (GENERATE, {"token_ids": list(range(200_000)), "sampling_params": {"stop": ["a"] * 100}}),
        (DETOKENIZE, {"tokens": [1] * 200_000}),
        ("/answer", {"questions": [1] * 20_000}),  # ours knows its own limit
    ],
)
def test_what_may_be_right_passes_unchanged(url: str, path: str, body: Any) -> None:
    sent = json.dumps(body).encode()
    assert httpx.post(url + path, content=sent, timeout=60).json() == hashlib.sha256(sent).hexdigest()


ITEM = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("path", "fits", "too_many"),
    [
        (RESPONSES, {"input": [ITEM] * 64}, {"input": [ITEM] * 65}),
        (RESPONSES + "/render/", {"input": [ITEM] * 64}, {"input": [{}] * 65}),
        (CHAT, {"messages": [ITEM] * 1000}, {"messages": [ITEM] * 1001}),
        (CHAT, {"messages": [{"content": [ITEM] * 999}]}, {"messages": [{"content": [ITEM] * 1000}]}),
        (CHAT + "/batch", {"messages": [[ITEM] * 99] * 10}, {"messages": [[ITEM] * 100] * 10}),
        ("/tokenize", {"messages": [ITEM] * 1000}, {"messages": [ITEM] * 1001}),
        (CHAT, {"messages": [ITEM], "allowed_token_ids": [1] * 9000}, {"messages": [1] * 1001}),
        (COMPLETIONS, {"prompt": ["a"] * 512}, {"prompt": ["a"] * 1001}),
        (COMPLETIONS, {"prompt": [7] * 200_000, "stop": ["a"] * 9}, {"prompt": [7] * 200_000, "stop": ["a"] * 1001}),
        ("/inference/v1/abort_requests", {"request_ids": ["a"] * 9000}, {"request_ids": ["a"] * 10_001}),
        (RESPONSES, {"input": [{"content": [{}] * 200}] * 2}, {"input": [{"content": [[], []] * 510}]}),
        (GENERATE, {"token_ids": [7] * 5000}, {"token_ids": [7] * 5000, "x": [[[{}] * 400]] * 3}),
    ],
)
def test_lists_whose_items_vllm_tries_in_many_forms_are_short(
    url: str, path: str, fits: dict[str, Any], too_many: dict[str, Any]
) -> None:
    assert httpx.post(url + path, json=fits).status_code == 200
    answer = httpx.post(url + path, json=too_many)
    assert answer.status_code == 400
    assert re.search("more than .* (items|values)", answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("given", "says", "looked_at"),
    [
        ([ITEM] * 3 + [{}] * 61, "input.3: it is wrong", 4),
        ([ITEM, {"content": [1] * 257}, {}], "input.1: content: it has more than 256 items", 1),
        ([{"content": "a", "tools": [1] * 65}, {}], "input.0: tools: it has more than 64 items", 0),
        ({str(number): {} for number in range(60)}, "input: it is neither a text nor a list", 0),
        (7, "input: it is neither a text nor a list", 0),
    ],
)
def test_of_a_response_only_the_first_wrong_item_is_looked_at(url: str, given: Any, says: str, looked_at: int) -> None:
    seen.clear()
    answer = httpx.post(url + RESPONSES, json={"input": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == says
    assert len(seen) == looked_at


@pytest.mark.parametrize(
    "around",
    [
        lambda text: text.replace("{", '{"user": NaN, ', 1).encode(),
        lambda text: text.replace("{", '{"user": "\\ud800", ', 1).encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
    ],
    ids=["NaN", "half a pair", "BOM", "UTF-16"],
)
def test_what_only_the_server_reads_as_json_is_looked_at_too(url: str, around: Callable[[str], bytes]) -> None:
    answer = httpx.post(url + RESPONSES, content=around(json.dumps({"input": [ITEM, {}, {}]})))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "input.1: it is wrong"


def test_a_response_has_no_more_tools_than_openai_takes(url: str) -> None:
    for many, status in ((128, 200), (129, 400)):
        assert httpx.post(url + RESPONSES, json={"input": "x", "tools": [1] * many}).status_code == status


SAMPLED = {"token_ids": [7] * 5000, "logprobs": {"content": [{"token_id": 7, "logprob": 0.0}] * 1500}}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT + "/derender", {"generate_response": {"choices": [SAMPLED]}, "chat_request": {"messages": [ITEM]}}, 200),
        (CHAT + "/derender", {"chat_request": {"messages": [ITEM] * 501}, "x": [1] * 501}, 400),
        (COMPLETIONS + "/derender", {"generate_response": {"choices": [{}] * 2_501}}, 400),
        (GENERATE, {"token_ids": [7] * 1_500, "token_offsets": [[0, 1]] * 1_500}, 200),
        (GENERATE, {"token_ids": [7] * 1_500, "x": [[0, 1]] * 1_500}, 400),
        (CHAT, {"messages": [ITEM], "n": 129}, 400),
    ],
)
def test_of_what_was_sampled_more_is_read_than_of_what_is_asked(url: str, path: str, body: Any, status: int) -> None:
    assert httpx.post(url + path, json=body).status_code == status


def test_a_long_answer_with_its_log_probabilities_may_be_sent_back(url: str) -> None:
    said = {"logprobs": [{"token": "a", "logprob": 0.0, "bytes": [97] * 4, "top_logprobs": []}] * 50}
    body = {"input": [{"role": "assistant", "content": [said] * 2}]}
    assert httpx.post(url + RESPONSES, json=body).status_code == 200


def test_a_response_has_as_many_items_as_the_context_has_room_for() -> None:
    app = FastAPI()
    app.add_api_route(RESPONSES, lambda: "read", methods=["POST"])
    app.add_middleware(CheapRefusals, max_model_len=8_192, item_fault=item_fault)
    with serving(app) as port:
        statuses = [
            httpx.post(f"http://127.0.0.1:{port}{RESPONSES}", json={"input": [ITEM] * many}).status_code
            for many in (128, 129)
        ]
    assert statuses == [200, 400]


def test_chunks_files_and_requests_without_a_body_pass(url: str) -> None:
    sent = json.dumps({"messages": ["a" * 100_000] * 10}).encode()
    pieces = (sent[start : start + 1000] for start in range(0, len(sent), 1000))
    assert httpx.post(url + CHAT, content=pieces).json() == hashlib.sha256(sent).hexdigest()
    assert httpx.get(url + CHAT).status_code == httpx.post(url + CHAT).status_code == 200
    file = httpx.post(url + "/v1/audio/transcriptions", files={"file": b"," * 20_000})
    assert file.status_code == 200


def test_a_body_that_is_too_large_is_told_so(url: str) -> None:
    answer = httpx.post(url + CHAT, content=b"x" * (LIMIT + 1))
    assert answer.status_code == 413
    assert "larger than" in answer.json()["error"]["message"]
