"""Asks the policy's `/answer`."""

from __future__ import annotations

import asyncio

from pydantic import TypeAdapter

from research.errors import ServiceError
from research.http.service import HttpService
from research.schemas import AnswerResponse, StrategyName
from research.settings import Settings
from services.web.auth import API_KEY_VARIABLE, environment_secret


def ask_policy(settings: Settings, question: str, strategy: StrategyName = "research") -> AnswerResponse:
    """Ask one question, greedily; raises ServiceError that says what to do."""
    return asyncio.run(_ask(settings, {"question": question, "strategy": strategy}))


async def _ask(settings: Settings, asked: dict[str, str]) -> AnswerResponse:
    url, key = settings.endpoints.policy_urls[0], environment_secret(API_KEY_VARIABLE)
    seconds = settings.policy.answer_timeout + 10
    async with HttpService(url, name="the policy", timeout=seconds, retries=0, token=key) as policy:
        try:
            return await policy.request_as(TypeAdapter(AnswerResponse), "POST", "/answer", json=asked)
        except ServiceError as error:
            if error.reason != "unreachable":
                raise
            raise ServiceError(
                f"no policy answers at {url} ({error}); start the services with `research up`"
            ) from error
