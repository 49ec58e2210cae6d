"""`POST /answer`: a question goes in, the answer and the way to it come out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from prometheus_client import Counter, Histogram

from research.episode import Sampling, SearchAgent
from research.errors import ServiceError
from research.schemas import AnswerRequest, AnswerResponse, ErrorBody
from research.trace import answer_response
from services.web.auth import API_KEY_VARIABLE, environment_secret, require_bearer
from services.web.problems import ExplainingRoute, ProblemError

ANSWERS = Counter("research_answers_total", "Answered questions by stop reason.", ["stop_reason"])
ANSWER_SECONDS = Histogram("research_answer_seconds", "Seconds of one answer.", buckets=(0.5, 1, 2, 5, 10, 30, 60, 120))


class Answering:
    """Runs episodes for `/answer`, a bounded number at once and each within its time."""

    def __init__(self, agent: SearchAgent, *, concurrency: int, timeout: float, max_question_chars: int) -> None:
        self._agent = agent
        self._free = concurrency
        self._timeout = timeout
        self._max_question_chars = max_question_chars

    async def answer(self, request: AnswerRequest) -> AnswerResponse:
        if len(request.question) > self._max_question_chars:
            raise ProblemError(
                422,
                "invalid_request",
                f"question: {len(request.question)} characters are more than policy.max_question_chars "
                f"({self._max_question_chars})",
            )
        if self._free <= 0:
            raise ProblemError(429, "busy", "too many questions at once; try again soon", {"Retry-After": "2"})
        self._free -= 1
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                episode = await self._with_limits(request).run(
                    request.question, Sampling(request.temperature, 1.0, request.seed)
                )
        except TimeoutError as error:
            raise ServiceError(f"no answer within policy.answer_timeout ({self._timeout:g} s)") from error
        finally:
            self._free += 1
        seconds = time.perf_counter() - started
        ANSWERS.labels(episode.stop_reason).inc()
        ANSWER_SECONDS.observe(seconds)
        return answer_response(episode, seconds)

    def _with_limits(self, request: AnswerRequest) -> SearchAgent:
        given = request.model_dump(include={"top_k", "max_searches", "max_tokens"}, exclude_none=True)
        return replace(self._agent, limits=self._agent.limits.model_copy(update=given))


router = APIRouter(tags=["research"], route_class=ExplainingRoute)


def _answering(request: Request) -> Answering:
    answering: Answering = request.app.state.research_answering
    return answering


@router.post(
    "/answer",
    dependencies=[Depends(require_bearer(environment_secret(API_KEY_VARIABLE), API_KEY_VARIABLE))],
    responses={status: {"model": ErrorBody} for status in (401, 422, 429, 503)},
)
async def answer(body: AnswerRequest, answering: Annotated[Answering, Depends(_answering)]) -> AnswerResponse:
    """Answer one question by thinking and searching."""
    return await answering.answer(body)
