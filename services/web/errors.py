"""Errors of every service over HTTP: one body, one table from error to status."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from research.errors import (
    AssetError,
    ConfigurationError,
    ProtocolError,
    ResearchError,
    ServiceBusyError,
    ServiceError,
    ServiceRefusalError,
)
from research.http import request_id
from research.schemas import MOST_VALUES, ErrorBody
from services.web.disconnect import CLIENT_CLOSED_REQUEST
from services.web.json_bounds import fault_of
from services.web.telemetry.refusals import count_refusal


class HttpError(ResearchError):
    """An error with its HTTP status."""

    def __init__(
        self, status: int, error: str, message: str, headers: dict[str, str] | None = None, *, reason: str = ""
    ) -> None:
        """`reason` is for the counter of refusals, where it says more than `error`."""
        super().__init__(message)
        self.status, self.error, self.headers, self.reason = status, error, headers, reason or error


_STATUSES: list[tuple[type[ResearchError], int, str]] = [
    (ServiceBusyError, 503, "retriever_busy"),
    # No client of ours or OpenAI's asks again after this, as it would after 409 and after all of 5xx.
    (ServiceRefusalError, 424, "service_refused"),
    (ServiceError, 503, "service_unavailable"),
    (ProtocolError, 422, "invalid_request"),
    (ConfigurationError, 422, "invalid_request"),
    (AssetError, 422, "invalid_checkpoint"),
]


# A message that grows with the body would make refusing dearer than answering.
_NAMED_FAULTS = 3
_NAMED_CHARS = 200

_KINDS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 503: "busy"}


class ValidationRoute(APIRoute):
    """A route that answers an invalid body with 422 and `ErrorBody`, whatever its app does with such errors.

    A body of more values than its model declares in `most_values` is refused before it is parsed.
    """

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()
        model = self.body_field.field_info.annotation if self.body_field is not None else None
        most = getattr(model, "most_values", MOST_VALUES)

        async def explaining(request: Request) -> Response:
            try:
                if model is not None and (fault := fault_of(await request.body(), most)):
                    raise HttpError(422, "invalid_request", fault)
                return await handle(request)
            except RequestValidationError as error:
                raise HttpError(422, "invalid_request", explain_faults(error)) from error
            except ClientDisconnect:
                return Response(status_code=CLIENT_CLOSED_REQUEST)

        return explaining


def install_error_handlers(
    app: FastAPI,
    *,
    as_http: Callable[[ResearchError], HttpError | None] = lambda _: None,
    whole_app: bool = True,
    count_bug: Callable[[], None] = lambda: None,
) -> None:
    """Answer every error with `ErrorBody`; an unknown error is a 500.

    Args:
        as_http: maps a service's own errors; None leaves an error to the common table.
        whole_app: also answer invalid bodies, unknown routes and bugs. vLLM's app keeps its own formats for those.
        count_bug: called for each response to a bug.
    """

    async def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ResearchError)
        known = as_http(error) or (error if isinstance(error, HttpError) else None)
        status, kind = status_of(known or error)
        headers = known.headers if known else retry_headers(error)
        return error_response(status, kind, str(known or error), headers, reason=known.reason if known else kind)

    async def wrong_body(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(422, "invalid_request", explain_faults(error))

    async def no_route(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = _KINDS.get(error.status_code, "http_error")
        return error_response(error.status_code, kind, str(error.detail), error.headers)

    async def bug(_: Request, _error: Exception) -> JSONResponse:
        count_bug()
        return error_response(500, "internal_error", "this is a bug; see the service's log")

    app.add_exception_handler(ResearchError, ours)
    if whole_app:
        app.add_exception_handler(RequestValidationError, wrong_body)
        app.add_exception_handler(HTTPException, no_route)
        app.add_exception_handler(Exception, bug)


def status_of(error: ResearchError) -> tuple[int, str]:
    """The HTTP status and the name of an error."""
    if isinstance(error, HttpError):
        return error.status, error.error
    for kind, status, name in _STATUSES:
        if isinstance(error, kind):
            return status, name
    return 500, "internal_error"


def retry_headers(error: ResearchError) -> dict[str, str]:
    """What a busy service that we asked said of when to come back, for whoever asked us."""
    if isinstance(error, ServiceBusyError) and error.retry_after is not None:
        return {"Retry-After": str(math.ceil(error.retry_after))}
    return {}


def error_response(
    status: int, error: str, message: str, headers: Mapping[str, str] | None = None, *, reason: str = ""
) -> JSONResponse:
    """The one body of all errors; counted by `reason`, or by `error`."""
    count_refusal(reason or error, status)
    body = ErrorBody(error=error, message=message, request_id=request_id.current())
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def explain_faults(error: RequestValidationError) -> str:
    """The first faults of a body as sentences that name their fields, and the number of the others."""
    faults = error.errors()
    others = [f"and {len(faults) - _NAMED_FAULTS} more"] if len(faults) > _NAMED_FAULTS else []
    return "; ".join([*map(_explain_fault, faults[:_NAMED_FAULTS]), *others])


def _explain_fault(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']}"
    if problem["type"] == "model_attributes_type":
        return "the body is not a JSON object sent as Content-Type: application/json"
    # A field that does not exist may have any name.
    field = ".".join(str(part) for part in problem["loc"][1:])[:_NAMED_CHARS] or "body"
    what = "there is no such field" if problem["type"] == "extra_forbidden" else problem["msg"]
    return f"{field}: {what}"
