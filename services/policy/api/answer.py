"""`POST /answer`: takes one question or several, and returns each answer with its trace, whole or as a stream."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.responses import StreamingResponse

from research.episode.agent import Sampling
from research.episode.streaming import TextDelta
from research.errors import ResearchError
from research.http import request_id
from research.schemas import AgentLimits, AnswerRequest, AnswerResponse, AnswersResponse, ErrorBody
from services.policy.answer.openapi_examples import REQUESTS, RESPONSES
from services.policy.answer.service import (
    RETRY_SECONDS,
    AnswerEvent,
    AnswerService,
    AnswerTask,
    BusyError,
    prefetch_first,
)
from services.policy.service import PolicyService
from services.web.auth import API_KEY_VARIABLE, environment_secret, require_bearer
from services.web.disconnect import CLIENT_CLOSED_REQUEST, cancel_on_disconnect
from services.web.errors import HttpError, ValidationRoute, status_of
from services.web.telemetry.refusals import count_refusal

logger = logging.getLogger(__name__)


def answer_routes(service: PolicyService) -> APIRouter:
    """The route; it requires the API key if one is set."""
    router = APIRouter(tags=["research"], route_class=ValidationRoute)

    @router.post(
        "/answer",
        dependencies=[Depends(require_bearer(environment_secret(API_KEY_VARIABLE), API_KEY_VARIABLE))],
        responses=RESPONSES,
        response_model=AnswerResponse | AnswersResponse,
    )
    async def answer(
        body: Annotated[AnswerRequest, Body(openapi_examples=REQUESTS)], request: Request
    ) -> Response | AnswerResponse | AnswersResponse:
        """Answer one question, or several, by thinking and searching."""
        try:
            return await _answer(service.answers, body, request)
        except BusyError as error:
            raise HttpError(429, "busy", str(error), {"Retry-After": str(RETRY_SECONDS)}) from error

    return router


async def _answer(
    answers: AnswerService, body: AnswerRequest, request: Request
) -> Response | AnswerResponse | AnswersResponse:
    tasks = [_parse_request(body, question) for question in body.questions or [body.question or ""]]
    if body.stream:
        events = await cancel_on_disconnect(request, prefetch_first(answers.stream(tasks[0])))
        if events is not None:
            return StreamingResponse(_server_sent(events), media_type="text/event-stream")
    elif body.questions is None:
        answer = await cancel_on_disconnect(request, answers.answer(tasks[0]))
        if answer is not None:
            return answer
    else:
        together = await cancel_on_disconnect(request, _all(answers, tasks))
        if together is not None:
            return AnswersResponse(answers=together)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _all(answers: AnswerService, tasks: list[AnswerTask]) -> list[AnswerResponse]:
    try:
        return await answers.answer_all(tasks)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _parse_request(body: AnswerRequest, question: str) -> AnswerTask:
    limits = AgentLimits.model_validate(body.model_dump(include=set(AgentLimits.model_fields)))
    return AnswerTask(question, Sampling(body.temperature, 1.0, body.seed), limits, body.strategy, body.adapter)


async def _server_sent(events: AsyncGenerator[AnswerEvent]) -> AsyncGenerator[bytes]:
    """Events `think`, `search`, `open`, `answer`, `text` with text, `result` with passages; then `done`, or `error`."""
    try:
        async with aclosing(events):
            async for event in events:
                yield _message(event)
    except ResearchError as error:
        yield _failed(status_of(error)[1], str(error))
    except Exception as bug:
        logger.exception("a stream failed")
        yield _failed("internal_error", f"the answer failed: {bug!r}")


def _failed(error: str, message: str) -> bytes:
    count_refusal(error, 200)
    return _sse("error", ErrorBody(error=error, message=message, request_id=request_id.current()).model_dump())


def _message(event: AnswerEvent) -> bytes:
    if isinstance(event, AnswerResponse):
        return _sse("done", event.model_dump())
    if isinstance(event, TextDelta):
        return _sse(event.piece.kind, {"step": event.piece.step, "text": event.piece.text})
    passages = [{"id": passage.id, "title": passage.title, "text": passage.text} for passage in event.passages]
    return _sse("result", {"query": event.query, "passages": passages})


def _sse(event: str, data: dict[str, Any]) -> bytes:
    return b"event: " + event.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"
