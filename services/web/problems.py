"""Errors of our own routes: one body, and a status that tells whose turn it is."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from research.errors import (
    AssetError,
    ConfigurationError,
    ProtocolError,
    ResearchError,
    ServiceBusyError,
    ServiceError,
)
from research.schemas import ErrorBody


class ProblemError(ResearchError):
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


def install_problem_handler(app: FastAPI) -> None:
    """Answer every ResearchError with `ErrorBody`; what is not in the table is a 500."""

    async def handle(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, ProblemError):
            return _response(error.status, error.error, str(error), error.headers)
        for kind, status, name in _STATUSES:
            if isinstance(error, kind):
                return _response(status, name, str(error))
        return _response(500, "internal_error", str(error))

    app.add_exception_handler(ResearchError, handle)


def _response(status: int, error: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = ErrorBody(error=error, message=message).model_dump()
    return JSONResponse(body, status_code=status, headers=headers)
