"""Who may do what: bearer tokens from the environment, compared in constant time."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, Request

from services.web.errors import HttpError

API_KEY_VARIABLE = "RESEARCH_API_KEY"
ADMIN_TOKEN_VARIABLE = "RESEARCH_ADMIN_TOKEN"


def environment_secret(variable: str) -> str | None:
    """The secret, or None if it is unset or blank."""
    return os.environ.get(variable, "").strip() or None


def admin_guard() -> list[Any]:
    """The dependencies of routes that change state: the admin token; none, if none is set and such routes stay out."""
    token = environment_secret(ADMIN_TOKEN_VARIABLE)
    return [Depends(require_bearer(token, ADMIN_TOKEN_VARIABLE))] if token is not None else []


def require_bearer(secret: str | None, variable: str) -> Callable[[Request], Awaitable[None]]:
    """A FastAPI dependency that lets a request pass if it carries the secret; with no secret set, all pass."""

    async def check(request: Request) -> None:
        if secret is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), secret.encode()):
            raise HttpError(401, "unauthorized", f"send `Authorization: Bearer <the value of {variable}>`")

    return check
