"""Every error of the HTTP side as `research.schemas.ErrorBody`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from research.errors import ServiceBusyError, ServiceError
from research.schemas import ErrorBody
from services.retriever.api.limits import InvalidFieldError
from services.retriever.retriever import NotReadyError, Retriever, UnknownIndexError
from services.web.problems import HttpError, error_response, explain_fault

# For the OpenAPI description of a route.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        413: "The body is too large",
        422: "A field is missing, wrong or beyond its limit; the message names it",
        429: "Too many queries wait; try again after `Retry-After` seconds",
        503: "Still loading",
    }.items()
}

_KINDS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def install_error_handlers(app: FastAPI, retriever: Retriever) -> None:
    """Turn exceptions of the routes into responses."""

    async def busy(_request: Request, error: Exception) -> JSONResponse:
        retriever.metrics.count_rejected()
        return error_response(429, "busy", str(error), retriever.retry_headers())

    async def not_ready(_request: Request, error: Exception) -> JSONResponse:
        return error_response(503, "not_ready", str(error), {"Retry-After": "1"})

    async def invalid_field(_request: Request, error: Exception) -> JSONResponse:
        return error_response(422, "invalid_request", str(error))

    async def unknown_index(_request: Request, error: Exception) -> JSONResponse:
        return error_response(422, "invalid_request", str(error))

    async def problem(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HttpError)
        if error.error == "busy":
            retriever.metrics.count_rejected()
        return error_response(error.status, error.error, str(error), error.headers)

    async def invalid_body(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(422, "invalid_request", "; ".join(map(explain_fault, error.errors())))

    async def http_error(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = _KINDS.get(error.status_code, "http_error")
        return error_response(error.status_code, kind, str(error.detail), error.headers)

    async def failed(_request: Request, _error: Exception) -> JSONResponse:
        return error_response(500, "search_failed", "the search failed; the log of the retriever says why")

    async def unexpected(_request: Request, _error: Exception) -> JSONResponse:
        retriever.metrics.observe_request("unknown", 500, 0.0)  # answered outside of what times the others
        return error_response(500, "internal", "this is a bug; the log of the retriever says where")

    app.add_exception_handler(ServiceBusyError, busy)
    app.add_exception_handler(ServiceError, failed)
    app.add_exception_handler(NotReadyError, not_ready)
    app.add_exception_handler(InvalidFieldError, invalid_field)
    app.add_exception_handler(UnknownIndexError, unknown_index)
    app.add_exception_handler(HttpError, problem)
    app.add_exception_handler(RequestValidationError, invalid_body)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)
