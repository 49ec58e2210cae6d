"""Errors of our own routes: one body, and a status that tells whose turn it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from research.errors import (
    AssetError,
    ConfigurationError,
    ProtocolError,
    ResearchError,
    ServiceBusyError,
    ServiceError,
)
from research.schemas import ErrorBody


class HttpError(ResearchError):
    """An error with the HTTP status that it shall have."""

    def __init__(self, status: int, error: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.error, self.headers = status, error, headers


_STATUSES: list[tuple[type[ResearchError], int, str]] = [
    (ServiceBusyError, 503, "retriever_busy"),
    (ServiceError, 503, "service_unavailable"),
    (ProtocolError, 422, "invalid_request"),
    (ConfigurationError, 422, "invalid_request"),
    (AssetError, 422, "invalid_checkpoint"),
]


class ValidationRoute(APIRoute):
    """A route that answers a wrong body with 422 and `ErrorBody`, whatever the app around it does with such errors."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def explaining(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                faults = "; ".join(map(explain_fault, error.errors()))
                raise HttpError(422, "invalid_request", faults) from error

        return explaining


def install_http_error_handler(app: FastAPI) -> None:
    """Answer every ResearchError with `ErrorBody`; what is not in the table is a 500."""

    async def handle(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ResearchError)
        headers = error.headers if isinstance(error, HttpError) else None
        return error_response(*status_of(error), str(error), headers)

    app.add_exception_handler(ResearchError, handle)


def status_of(error: ResearchError) -> tuple[int, str]:
    """The HTTP status and the name of an error."""
    if isinstance(error, HttpError):
        return error.status, error.error
    for kind, status, name in _STATUSES:
        if isinstance(error, kind):
            return status, name
    return 500, "internal_error"


def error_response(status: int, error: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The one body of all errors."""
    body = ErrorBody(error=error, message=message)
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def explain_fault(problem: Mapping[str, Any]) -> str:
    """One entry of `RequestValidationError.errors()` as a sentence that names the field."""
    if problem["type"] == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']}"
    if problem["type"] == "model_attributes_type":
        return "the body is not a JSON object sent as Content-Type: application/json"
    field = ".".join(str(part) for part in problem["loc"][1:]) or "body"
    what = "there is no such field" if problem["type"] == "extra_forbidden" else problem["msg"]
    return f"{field}: {what}"
