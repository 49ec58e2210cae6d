"""Access control: bearer tokens from the environment or from files that it names, compared in constant time."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from research.errors import ConfigurationError
from services.web.errors import HttpError, error_response

API_KEY_VARIABLE = "RESEARCH_API_KEY"
ADMIN_TOKEN_VARIABLE = "RESEARCH_ADMIN_TOKEN"


# Ours, so we may ask for a length; those of other services are what they are.
_OWN = (API_KEY_VARIABLE, ADMIN_TOKEN_VARIABLE)
# Twelve random letters and digits cannot be guessed over a network.
_LEAST_CHARS = 12


def environment_secret(variable: str) -> str | None:
    """The secret in `variable`, or in the file that `<variable>_FILE` names; None if both are unset or blank.

    A file is the better place: `docker inspect`, children and crash reports show the environment.

    Raises:
        ConfigurationError: both are set, the file is blank or cannot be read, or a secret of ours is too short.
    """
    secret, where = os.environ.get(variable, "").strip(), variable
    if file := os.environ.get(f"{variable}_FILE", "").strip():
        if secret:
            raise ConfigurationError(f"{variable} and {variable}_FILE are both set; unset one of them")
        where = f"{file} ({variable}_FILE)"
        try:
            secret = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{where} cannot be read as a secret: {error}") from error
        if not secret:
            raise ConfigurationError(f"{where} is blank; write the secret to it, or unset {variable}_FILE")
    if secret and variable in _OWN and len(secret) < _LEAST_CHARS:
        raise ConfigurationError(
            f"{where} is shorter than {_LEAST_CHARS} characters; make one with: openssl rand -hex 24"
        )
    return secret or None


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
        self._secret = cache(environment_secret)  # a file is not read for each request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        variable = self._variable_of(scope["path"]) if scope["type"] == "http" else None
        secret = self._secret(variable) if variable is not None else None
        if variable is None or secret is None or _carries(Headers(scope=scope), secret):
            await self._app(scope, receive, send)
            return
        await error_response(401, "unauthorized", _told(variable))(scope, receive, send)


def _carries(headers: Headers, secret: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), secret.encode())


def _told(variable: str) -> str:
    return f"send `Authorization: Bearer <the value of {variable}>`"
