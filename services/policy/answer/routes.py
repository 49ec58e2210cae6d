"""`POST /answer`: a question goes in, the answer and the way to it come out; several at once, or as it happens."""

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
from services.web.auth import API_KEY_VARIABLE, environment_secret, require_bearer
from services.web.disconnect import CLIENT_CLOSED_REQUEST, cancel_on_disconnect
from services.web.problems import HttpError, ValidationRoute, status_of

_logger = logging.getLogger(__name__)

router = APIRouter(tags=["research"], route_class=ValidationRoute)


def _answer_service(request: Request) -> AnswerService:
    answering: AnswerService = request.app.state.research_answering
    return answering


@router.post(
    "/answer",
    dependencies=[Depends(require_bearer(environment_secret(API_KEY_VARIABLE), API_KEY_VARIABLE))],
    responses=RESPONSES,
    response_model=AnswerResponse | AnswersResponse,
)
async def answer(
    body: Annotated[AnswerRequest, Body(openapi_examples=REQUESTS)],
    request: Request,
    answering: Annotated[AnswerService, Depends(_answer_service)],
) -> Response | AnswerResponse | AnswersResponse:
    """Answer one question, or several, by thinking and searching."""
    try:
        asked = [_parse_request(body, question) for question in body.questions or [body.question or ""]]
        if body.stream:
            events = await cancel_on_disconnect(request, prefetch_first(answering.stream(asked[0])))
            if events is None:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            return StreamingResponse(_server_sent(events), media_type="text/event-stream")
        if body.questions is None:
            done: AnswerResponse | list[AnswerResponse] | None
            done = await cancel_on_disconnect(request, answering.answer(asked[0]))
        else:
            done = await cancel_on_disconnect(request, _all(answering, asked))
    except BusyError as error:
        raise HttpError(429, "busy", str(error), {"Retry-After": str(RETRY_SECONDS)}) from error
    if done is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return AnswersResponse(answers=done) if isinstance(done, list) else done


async def _all(answering: AnswerService, asked: list[AnswerTask]) -> list[AnswerResponse]:
    try:
        return await answering.answer_all(asked)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _parse_request(body: AnswerRequest, question: str) -> AnswerTask:
    limits = AgentLimits.model_validate(body.model_dump(include=set(AgentLimits.model_fields)))
    return AnswerTask(question, Sampling(body.temperature, 1.0, body.seed), limits, body.strategy, body.adapter)


async def _server_sent(events: AsyncGenerator[AnswerEvent]) -> AsyncGenerator[bytes]:
    """`think`, `search`, `answer` and `text` with what is written, `result` with passages; `done`, or `error`."""
    try:
        async with aclosing(events):
            async for event in events:
                yield _message(event)
    except ResearchError as error:
        yield _sse("error", ErrorBody(error=status_of(error)[1], message=str(error)).model_dump())
    except Exception as bug:
        _logger.exception("a stream broke")
        yield _sse("error", ErrorBody(error="internal_error", message=f"the answer broke off: {bug!r}").model_dump())


def _message(event: AnswerEvent) -> bytes:
    if isinstance(event, AnswerResponse):
        return _sse("done", event.model_dump())
    if isinstance(event, TextDelta):
        return _sse(event.piece.kind, {"step": event.piece.step, "text": event.piece.text})
    passages = [{"id": passage.id, "title": passage.title, "text": passage.text} for passage in event.passages]
    return _sse("result", {"query": event.query, "passages": passages})


def _sse(event: str, data: dict[str, Any]) -> bytes:
    return b"event: " + event.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"
