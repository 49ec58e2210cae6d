"""Errors of the agent in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from research.errors import ResearchError
from services.policy.answer.service import RETRY_SECONDS, BusyError
from services.web.errors import status_of


class OpenAIHttpError(ResearchError):
    """`cause` in the form that OpenAI's clients read."""

    def __init__(self, cause: ResearchError) -> None:
        super().__init__(str(cause))
        busy = isinstance(cause, BusyError)
        self.status, self.kind = (429, "busy") if busy else status_of(cause)
        if self.status == 422:
            self.status = 400  # OpenAI's status for requests that it does not understand
        self.headers = {"Retry-After": str(RETRY_SECONDS)} if busy else {}

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {…}}`."""
        return {"error": {"message": str(self), "type": self.kind, "param": None, "code": self.status}}


def install_openai_error_handler(app: FastAPI) -> None:
    """Answer each `OpenAIHttpError` with its status and body."""

    async def handle(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, OpenAIHttpError)
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    app.add_exception_handler(OpenAIHttpError, handle)
