"""The search agent behind the OpenAI API: real vLLM, real retriever, clients as people use them.

The model is the built-in one, untrained; a prompt with two worked examples makes it search.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from research.schemas import AnswerResponse
from tests.conftest import Server

KEY = "key-for-tests"
QUESTION = "Who painted The Starry Night?"
FEW_SHOT = Path(__file__).with_name("few_shot.txt")
AGENT, RAW = "research", "policy"


@dataclass
class Services:
    """A policy and the retriever that it searches."""

    policy: Server
    retriever: Server

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.policy.url, timeout=120, headers={"Authorization": f"Bearer {KEY}"})

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.policy.url}/v1", api_key=KEY, timeout=120, **options)

    def metric(self, name: str) -> float:
        lines = self.http().get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and line[len(name)] in " {")


@pytest.fixture(scope="module")
def services(launch: Any) -> Services:
    retriever = launch("retriever")
    policy = launch(
        "policy",
        f"policy.retriever_url={retriever.url}",
        f"episode.prompt={FEW_SHOT}",
        "policy.answer_concurrency=4",
        timeout=300,
        environment={"RESEARCH_API_KEY": KEY, "OMP_NUM_THREADS": "2"},
    )
    return Services(policy, retriever)


@pytest.fixture
def client(services: Services) -> Iterator[openai.OpenAI]:
    with services.openai(max_retries=0) as client:
        yield client


def user(text: str = QUESTION) -> list[Any]:
    return [{"role": "user", "content": text}]


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model=AGENT, messages=more.pop("messages", user()), **more)


def test_models_lists_the_raw_model_and_the_agent(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models) == [RAW, AGENT]
    assert models[AGENT].parent == RAW  # type: ignore[attr-defined]


def test_the_answer_is_content_and_the_way_to_it_is_reasoning(client: openai.OpenAI) -> None:
    completion = ask(client)
    message = completion.choices[0].message
    trace = AnswerResponse.model_validate(completion.research)
    searches = [step.text for step in trace.trace if step.kind == "search"]
    assert searches, trace
    assert f"Search: {searches[0]}" in message.reasoning
    assert "Found: The Starry Night" in message.reasoning
    assert message.content == trace.answer
    assert completion.choices[0].finish_reason in ("stop", "length")
    cited = [annotation.url_citation for annotation in message.annotations]
    assert [(citation.url, citation.title) for citation in cited] == [
        (f"passage:{passage.id}", passage.title) for passage in trace.passages
    ]
    assert {(citation.start_index, citation.end_index) for citation in cited} == {(0, len(message.content))}
    usage = completion.usage
    assert usage.completion_tokens == trace.usage.sampled_tokens
    assert usage.prompt_tokens == trace.usage.prompt_tokens + trace.usage.result_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_says_the_same_piece_by_piece(client: openai.OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    message = whole.choices[0].message
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == message.reasoning
    assert sum(1 for delta in deltas if getattr(delta, "reasoning", None)) > 5
    assert deltas[0].role == "assistant"
    assert deltas[-1].annotations == [annotation.model_dump() for annotation in message.annotations]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    told = AnswerResponse.model_validate(next(chunk.research for chunk in chunks if getattr(chunk, "research", None)))
    assert told.trace == AnswerResponse.model_validate(whole.research).trace


def test_the_raw_model_is_as_vllm_serves_it(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model=RAW, messages=user(), max_tokens=8)
    assert completion.choices[0].message.content
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 8
    assert "research" not in completion.model_dump()
    streamed = client.chat.completions.create(model=RAW, messages=user(), max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed)


def test_async_clients_ask_several_at_once(services: Services) -> None:
    async def three() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{services.policy.url}/v1", api_key=KEY) as client:
            asked = (
                client.chat.completions.create(model=AGENT, messages=user(f"Who wrote {title}?"))
                for title in ("Hamlet", "Emma", "Ulysses")
            )
            return list(await asyncio.gather(*asked))

    assert all(completion.choices[0].message.reasoning for completion in asyncio.run(three()))


def test_earlier_messages_are_told_before_the_question(client: openai.OpenAI) -> None:
    chat = [*user("I like paintings."), {"role": "assistant", "content": "So do I."}, *user()]
    completion = ask(client, messages=chat, max_tokens=8)
    told = completion.research["question"]
    assert told.index("User: I like paintings.") < told.index("Assistant: So do I.") < told.index(QUESTION)


def test_limits_of_the_request_hold(client: openai.OpenAI) -> None:
    none = ask(client, extra_body={"research": {"max_searches": 0}})
    assert none.research["stop_reason"] == "search_limit"
    assert none.research["usage"]["searches"] == 0
    assert none.choices[0].finish_reason == "length"
    assert len(ask(client, extra_body={"research": {"top_k": 3, "max_searches": 1}}).research["passages"]) == 3
    assert ask(client, max_completion_tokens=5).usage.completion_tokens == 5


@pytest.mark.parametrize(
    ("request_fields", "named"),
    [
        ({"n": 2}, "n: "),
        ({"logprobs": True}, "logprobs: "),
        ({"stop": ["."]}, "stop: "),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages: the last one"),
        ({"messages": user("  ")}, "messages.0.content: it is blank"),
        ({"messages": user("x" * 10_000)}, "question: 10000 characters"),
        ({"extra_body": {"research": {"max_serches": 1}}}, "research.max_serches"),
        ({"extra_body": {"research": {"timeout": 1e6}}}, "timeout: "),
        ({"extra_body": {"research": 3}}, "research"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_agent_cannot_do_is_named(
    client: openai.OpenAI, request_fields: dict[str, Any], named: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, stream=stream, **request_fields)
    assert named in refused.value.message


def test_a_key_is_asked_for(services: Services) -> None:
    with pytest.raises(openai.AuthenticationError):
        ask(services.openai(max_retries=0).with_options(api_key="wrong"))


def running(services: Services) -> float:
    return services.metric("vllm:num_requests_running")


def await_condition(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": AGENT, "messages": user(), "stream": True}),
        ("/v1/chat/completions", {"model": AGENT, "messages": user()}),
        ("/answer", {"question": QUESTION, "stream": True}),
        ("/answer", {"question": QUESTION}),
        ("/answer", {"questions": [QUESTION, "Who wrote Hamlet?"]}),
    ],
)
def test_who_hangs_up_is_not_answered_any_longer(services: Services, path: str, body: dict[str, Any]) -> None:
    # Told to write long, so that it would go on for many seconds.
    long = {"temperature": 2.0, "seed": 1}
    before = services.metric("research_answers_total")
    with (
        services.http() as http,
        contextlib.suppress(httpx.ReadTimeout),
        http.stream("POST", path, json={**body, **long}, timeout=0.5) as response,
    ):
        next(response.iter_bytes())
    await_condition("the engine goes on although the client has gone", lambda: running(services) == 0, 10)
    assert services.metric("research_answers_total") == before


def test_too_many_at_once_are_refused_and_the_next_are_not(services: Services) -> None:
    async def many() -> list[httpx.Response]:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=services.policy.url, timeout=120, headers=headers) as http:
            body = {"model": AGENT, "messages": user()}
            return list(await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(12))))

    responses = asyncio.run(many())
    refused = [response for response in responses if response.status_code == 429]
    assert len(refused) == 8
    assert {response.status_code for response in responses} == {200, 429}
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)
    assert refused[0].json()["error"]["type"] == "busy"
    # OpenAI's own client waits and comes again.
    assert ask(services.openai(max_retries=3)).choices[0].message.content


def events_of(response: httpx.Response) -> list[tuple[str, Any]]:
    blocks = [block.splitlines() for block in response.read().decode().strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_answer_streams_what_happens(services: Services) -> None:
    with services.http() as http:
        whole = http.post("/answer", json={"question": QUESTION}).raise_for_status().json()
        with http.stream("POST", "/answer", json={"question": QUESTION, "stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = events_of(response)
    names = list(dict.fromkeys(name for name, _ in events))
    assert names[:4] == ["think", "search", "result", "answer"]
    assert events[-1][0] == "done"
    assert events[-1][1]["trace"] == whole["trace"]
    [found, *_] = [data for name, data in events if name == "result"]
    assert found["passages"][0]["title"] == "The Starry Night"
    assert found["query"] == next(step["text"] for step in whole["trace"] if step["kind"] == "search")


def test_answer_takes_several_questions_and_more_than_may_run_at_once(services: Services) -> None:
    questions = [f"Who wrote {title}?" for title in ("Hamlet", "Emma", "Ulysses", "Walden", "Dracula", "Candide")]
    with services.http() as http:
        answers = http.post("/answer", json={"questions": questions}).raise_for_status().json()["answers"]
        alone = http.post("/answer", json={"question": questions[2]}).raise_for_status().json()
    assert [answer["question"] for answer in answers] == questions
    assert answers[2]["trace"] == alone["trace"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "give either `question` or `questions`"),
        ({"question": "a", "questions": ["b"]}, "give either"),
        ({"questions": ["a"], "stream": True}, "stream: only one"),
        ({"questions": []}, "questions"),
        ({"question": "a", "strategy": "guess"}, "strategy"),
        ({"question": "a", "timeout": 1e6}, "timeout"),
    ],
)
def test_a_wrong_answer_request_is_explained(services: Services, body: dict[str, Any], named: str) -> None:
    with services.http() as http:
        response = http.post("/answer", json=body)
    assert response.status_code == 422
    assert named in response.json()["message"]


def test_time_runs_out_as_an_error(services: Services) -> None:
    with services.http() as http:
        response = http.post("/answer", json={"question": QUESTION, "timeout": 0.05})
        assert response.status_code == 503
        assert "no answer within 0.05 s" in response.json()["message"]
        with http.stream("POST", "/answer", json={"question": QUESTION, "timeout": 0.05, "stream": True}) as response:
            assert events_of(response)[-1][0] == "error"


def test_without_its_retriever_the_agent_says_so(services: Services, launch: Any) -> None:
    """The last test: it ends the retriever."""
    services.retriever.process.terminate()
    services.retriever.process.wait(timeout=30)
    with services.openai(max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match="the retriever"):
            ask(client, extra_body={"research": {"timeout": 20}})
        with pytest.raises(openai.APIError, match="the retriever"):
            list(ask(client, stream=True))
