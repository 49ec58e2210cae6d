"""The agent as a model of the OpenAI API."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from research.episode.latex import strip_latex
from research.schemas import AnswerResponse
from tests.support.agent_services import AGENT, KEY, QUESTION, RAW, Services, ask, user


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
    # The untrained model goes on after its answer and may give others; the first counts.
    assert message.content == next(strip_latex(step.text) for step in trace.trace if step.kind == "answer")
    assert message.content
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
    [streamed] = [chunk.research for chunk in chunks if getattr(chunk, "research", None)]
    assert streamed.keys() == AnswerResponse.model_fields.keys(), "what it has none of is null, and there"


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
        ({"temperature": 3}, "temperature: "),
        ({"top_p": 0}, "top_p: "),
        ({"logprobs": True}, "logprobs: "),
        ({"stop": ["."]}, "stop: "),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
        ({"extra_body": {"structured_outputs": {"json": {"type": "object"}}}}, "structured_outputs: "),
        ({"logit_bias": {"1": 5}}, "logit_bias: "),
        ({"extra_body": {"stop_token_ids": [2]}}, "stop_token_ids: "),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages: the last message"),
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
