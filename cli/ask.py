"""Asks the policy's `/answer`."""

from __future__ import annotations

import httpx

from research.errors import ServiceError
from research.schemas import AnswerResponse, StrategyName
from research.settings import Settings
from services.web.auth import API_KEY_VARIABLE, environment_secret


def ask_policy(settings: Settings, question: str, strategy: StrategyName = "research") -> AnswerResponse:
    """Ask one question, greedily; raises ServiceError that says what to do."""
    url = settings.endpoints.policy_urls[0]
    key = environment_secret(API_KEY_VARIABLE)
    try:
        answer = httpx.post(
            f"{url}/answer",
            json={"question": question, "strategy": strategy},
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.policy.answer_timeout + 10,
        )
    except httpx.HTTPError as error:
        raise ServiceError(f"no policy answers at {url} ({error}); start the services with `research up`") from error
    if answer.status_code != 200:
        raise ServiceError(f"the policy answered {answer.status_code}: {answer.text}")
    return AnswerResponse.model_validate(answer.json())
