"""Access control: bearer tokens from the environment, compared in constant time."""

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
    """The dependencies of routes that change state: the admin token; empty if it is unset, and such routes stay off."""
    token = environment_secret(ADMIN_TOKEN_VARIABLE)
    return [Depends(require_bearer(token, ADMIN_TOKEN_VARIABLE))] if token is not None else []


def require_bearer(secret: str | None, variable: str) -> Callable[[Request], Awaitable[None]]:
    """A FastAPI dependency that admits a request if it carries the secret; without a secret it admits all."""

    async def check(request: Request) -> None:
        if secret is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), secret.encode()):
            raise HttpError(401, "unauthorized", f"send `Authorization: Bearer <the value of {variable}>`")

    return check
