"""Clients as other people's programs use them, beside OpenAI's own (test_chat.py)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.agent_services import AGENT, KEY, QUESTION, RAW, Services, ask, user


def langchain(services: Services, model: str, **options: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=model, base_url=f"{services.policy.url}/v1", api_key=KEY, timeout=120, **options)


@pytest.fixture(scope="module")
def content(services: Services) -> str:
    """What OpenAI's own client gets."""
    with services.openai() as client:
        return str(ask(client).choices[0].message.content)


def test_langchain(services: Services, content: str) -> None:
    model = langchain(services, AGENT, extra_body={"research": {"max_searches": 3}})
    message = model.invoke(QUESTION)
    assert message.content == content
    assert message.usage_metadata["output_tokens"] > 0
    chunks = list(model.stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == content
    assert asyncio.run(model.ainvoke([("user", QUESTION)])).content == content
    assert langchain(services, RAW, max_tokens=8).invoke(QUESTION).content


def test_litellm(services: Services, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network for prices
    import litellm

    where = {"api_base": f"{services.policy.url}/v1", "api_key": KEY, "timeout": 120}
    answered = litellm.completion(model=f"openai/{AGENT}", messages=user(), **where)
    assert answered.choices[0].message.content == content
    assert "Search: " in answered.choices[0].message.reasoning_content
    assert answered.usage.completion_tokens > 0
    chunks = list(litellm.completion(model=f"openai/{AGENT}", messages=user(), stream=True, **where))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content
    assert (
        asyncio.run(litellm.acompletion(model=f"openai/{AGENT}", messages=user(), **where)).choices[0].message.content
    )
    assert litellm.completion(model=f"openai/{RAW}", messages=user(), max_tokens=8, **where).choices[0].message.content
