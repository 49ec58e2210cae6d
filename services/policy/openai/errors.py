"""Errors of the agent in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from research.errors import ResearchError
from research.http import request_id
from services.policy.answer.service import RETRY_SECONDS, BusyError
from services.web.errors import retry_headers, status_of
from services.web.telemetry.refusals import count_refusal


class OpenAIHttpError(ResearchError):
    """`cause` in the form that OpenAI's clients read."""

    def __init__(self, cause: ResearchError) -> None:
        super().__init__(str(cause))
        busy = isinstance(cause, BusyError)
        self.status, self.kind = (429, "busy") if busy else status_of(cause)
        if self.status == 422:
            self.status = 400  # OpenAI's status for requests that it does not understand
        self.headers = {"Retry-After": str(RETRY_SECONDS)} if busy else retry_headers(cause)
        count_refusal(self.kind, self.status)

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {…}}`."""
        told = {"message": str(self), "type": self.kind, "param": None, "code": self.status}
        return {"error": {**told, "request_id": request_id.current()}}


def install_openai_error_handler(app: FastAPI) -> None:
    """Answer each `OpenAIHttpError` with its status and body."""

    async def handle(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, OpenAIHttpError)
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    app.add_exception_handler(OpenAIHttpError, handle)
