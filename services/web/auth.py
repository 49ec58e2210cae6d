"""Access control: bearer tokens from the environment, compared in constant time."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.web.errors import HttpError, error_response

API_KEY_VARIABLE = "RESEARCH_API_KEY"
ADMIN_TOKEN_VARIABLE = "RESEARCH_ADMIN_TOKEN"


def environment_secret(variable: str) -> str | None:
    """The secret, or None if it is unset or blank."""
    return os.environ.get(variable, "").strip() or None


def admin_guard() -> list[Any]:
    """The dependencies of routes that change state: the admin token; empty if it is unset, and such routes stay off."""
    token = environment_secret(ADMIN_TOKEN_VARIABLE)
    return [Depends(require_bearer(token, ADMIN_TOKEN_VARIABLE))] if token is not None else []


def require_bearer(secret: str | None, variable: str) -> Callable[[Request], Awaitable[None]]:
    """A FastAPI dependency that admits a request if it carries the secret; without a secret it admits all."""

    async def check(request: Request) -> None:
        if secret is not None and not _carries(request.headers, secret):
            raise HttpError(401, "unauthorized", _told(variable))

    return check


class TokenFirst:
    """ASGI middleware that asks for the secret of a path before anything of the body is read.

    A dependency of FastAPI is asked only once the whole body has been parsed.

    Args:
        app: the guarded app.
        variable_of: the variable that holds the secret of a path, or None if the path needs none.
    """

    def __init__(self, app: ASGIApp, variable_of: Callable[[str], str | None]) -> None:
        self._app = app
        self._variable_of = variable_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        variable = self._variable_of(scope["path"]) if scope["type"] == "http" else None
        secret = environment_secret(variable) if variable is not None else None
        if variable is None or secret is None or _carries(Headers(scope=scope), secret):
            await self._app(scope, receive, send)
            return
        await error_response(401, "unauthorized", _told(variable))(scope, receive, send)


def _carries(headers: Headers, secret: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), secret.encode())


def _told(variable: str) -> str:
    return f"send `Authorization: Bearer <the value of {variable}>`"
