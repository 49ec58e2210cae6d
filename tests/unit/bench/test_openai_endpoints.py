"""Endpoints that are not ours: what is sent, what comes back, and those that know less than vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from apps.bench.plan import PlannedMeasurement
from apps.bench.run import _ask
from apps.bench.sets import QuestionSet
from apps.bench.target import Target
from research.clients import RetrieverClient
from research.config import load_settings
from research.episode.agent import Finish, Sampling
from research.errors import ContextFullError, ServiceError, ServiceRefusalError
from research.questions import Question
from research.strategies.chat import Message
from research.strategies.completions import CompletionsPolicy
from research.strategies.openai_chat import OpenAIChat
from tests.support.web_search import searching

GREEDY = Sampling(0.0)
Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


@contextmanager
def endpoint(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers by `reply`; yields its address and the bodies it was sent."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append({**body, "path": self.path, "authorization": self.headers.get("Authorization")})
            status, answer = reply(body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(text: str) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


async def ask_json(url: str) -> str:
    async with OpenAIChat(url, "m", retries=0, api_key="secret") as chat:
        texts = [
            (await chat.complete_json([Message("user", "?")], 9, GREEDY, {"type": "object"})).text for _ in range(2)
        ]
    return texts[-1]


def test_an_endpoint_that_knows_no_schemas_is_asked_without_from_then_on() -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "response_format" in body:
            return 400, {"error": {"message": "response_format is not supported"}}
        return 200, said("{}")

    with endpoint(reply) as (url, sent):
        assert asyncio.run(ask_json(url)) == "{}"
    assert ["response_format" in body for body in sent] == [True, False, False]
    assert sent[0]["authorization"] == "Bearer secret"
    assert (sent[0]["path"], sent[0]["temperature"], sent[0]["max_tokens"]) == ("/v1/chat/completions", 0.0, 9)


def test_control_tokens_of_the_known_families_are_broken_before_they_reach_an_endpoint() -> None:
    tokens = ["<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|start_header_id|>", "<|endoftext|>", "<｜Assistant｜>"]
    tokens += [
        "<｜end▁of▁sentence｜>",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<</SYS>>",
        "<s>",
        "</s>",
        "<eos>",
        "<start_of_turn>",
    ]
    tokens += ["<tool_call>", "</tool_call>"]
    plain = "a < b | c > d [1] <b>bold</b> x[INSTANCE] <|> <summary> \n"

    async def ask(url: str) -> None:
        async with OpenAIChat(url, "m", retries=0) as chat:
            await chat.complete([Message("system", plain), Message("user", "x".join(tokens))], 9, GREEDY)

    with endpoint(lambda _: (200, said("yes"))) as (url, sent):
        asyncio.run(ask(url))
    system, user = sent[0]["messages"]
    assert system == {"role": "system", "content": plain}
    assert not [token for token in tokens if token in user["content"]]
    assert user["content"].replace(" ", "") == "x".join(tokens)


def test_requests_under_way_each_find_out_by_themselves() -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        unknown = next((name for name in ("response_format", "max_tokens", "temperature") if name in body), None)
        told = {"max_tokens": "use 'max_completion_tokens' instead", "temperature": "'temperature' is not supported"}
        return (400, {"error": told.get(str(unknown), f"{unknown}: unknown")}) if unknown else (200, said("{}"))

    async def all_at_once(url: str) -> list[str]:
        async with OpenAIChat(url, "m", retries=0) as chat:
            asked = (chat.complete_json([Message("user", "?")], 9, GREEDY, {}) for _ in range(40))
            return [completion.text for completion in await asyncio.gather(*asked)]

    with endpoint(reply) as (url, sent):
        assert asyncio.run(all_at_once(url)) == ["{}"] * 40
    assert sent[-1]["max_completion_tokens"] == 9
    assert "top_p" not in sent[-1]


def test_messages_that_do_not_fit_are_told_apart() -> None:
    told = {"error": "This model's maximum context length is 9 tokens, and you asked for more"}
    with endpoint(lambda body: (400, told)) as (url, sent), pytest.raises(ContextFullError):
        asyncio.run(ask_json(url))
    assert ["max_tokens" in body for body in sent] == [True, False], "without a limit of ours they might have fitted"

    def limited(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return (400, told) if "max_tokens" in body else (200, said("{}"))

    with endpoint(limited) as (url, sent):
        assert asyncio.run(ask_json(url)) == "{}"
    assert ["max_tokens" in body for body in sent] == [True, False, True, False], "the next one may have room"


def test_an_endpoint_that_samples_as_it_likes_is_known_for_it() -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return (400, {"error": "'temperature' is not supported"}) if "temperature" in body else (200, said("yes"))

    async def takes(url: str) -> tuple[bool, bool]:
        async with OpenAIChat(url, "m", retries=0) as chat:
            before = chat.takes_temperature
            await chat.probe_capabilities()
            return before, chat.takes_temperature

    with endpoint(reply) as (url, _):
        assert asyncio.run(takes(url)) == (True, False)


def test_an_error_that_has_nothing_to_do_with_schemas_is_told() -> None:
    with (
        endpoint(lambda body: (401, {"error": "no key"})) as (url, sent),
        pytest.raises(ServiceError, match=r"401: .*no key"),
    ):
        asyncio.run(ask_json(url))
    assert len(sent) == 1


def test_an_answer_in_no_known_form_is_told() -> None:
    with endpoint(lambda body: (200, {"text": "?"})) as (url, _), pytest.raises(ServiceError, match="an unknown form"):
        asyncio.run(ask_json(url))


async def generate(url: str) -> Any:
    async with CompletionsPolicy(url, "m", timeout=5, retries=0) as policy:
        return await policy.generate([5, 6], 9, GREEDY)


def test_tokens_go_in_and_tokens_come_out() -> None:
    choice = {"token_ids": [1, 2], "logprobs": {"token_logprobs": [-0.5, -0.25]}, "finish_reason": "stop"}
    with endpoint(lambda body: (200, {"choices": [{**choice, "stop_reason": "</search>"}]})) as (url, sent):
        generation = asyncio.run(generate(url))
    assert (generation.token_ids, generation.finish) == ([1, 2], Finish.SEARCH)
    assert (sent[0]["prompt"], sent[0]["stop"], sent[0]["path"]) == ([5, 6], ["</search>"], "/v1/completions")


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"token_ids": [1], "logprobs": None}]}])
def test_tokens_in_no_known_form_are_told(answer: dict[str, Any]) -> None:
    with endpoint(lambda body: (200, answer)) as (url, _), pytest.raises(ServiceError, match="an unknown form"):
        asyncio.run(generate(url))


def test_an_endpoint_that_tells_no_tokens_is_no_place_for_research() -> None:
    with (
        endpoint(lambda body: (200, {"choices": [{"text": "x", "finish_reason": "stop"}]})) as (url, _),
        pytest.raises(ServiceError, match="returns no token ids"),
    ):
        asyncio.run(generate(url))


def test_a_search_that_is_refused_for_good_ends_the_bench(tmp_path: Path) -> None:
    """It is no strategy that the endpoint cannot serve: the next one needs the same searches."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "tavily.jsonl").touch()
    asked = [Question("q", "Who painted it?", ("Vincent van Gogh",))]

    async def bench(chat_url: str, retriever_url: str) -> None:
        async with OpenAIChat(chat_url, "m", retries=0) as chat, RetrieverClient(retriever_url) as retriever:
            target = Target(load_settings(environment=False), None, chat, retriever, {}, None)  # type: ignore[arg-type]
            planned = PlannedMeasurement("naive-rag", QuestionSet("own", asked, None), {}, tmp_path / "a.jsonl")
            await _ask(target, [planned], Console(file=StringIO()))

    with (
        endpoint(lambda body: (200, said("?"))) as (url, sent),
        searching(tmp_path, url, "web.replay=true") as web,
        pytest.raises(ServiceRefusalError, match=r"set web\.replay=false"),
    ):
        asyncio.run(bench(url, str(web.base_url)))
    assert sent == []
