"""The admin token that `up`, `demo` and `study` share with their services, for commands in another terminal."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from research.errors import ConfigurationError
from research.settings import Settings
from services.web.auth import ADMIN_TOKEN_VARIABLE, environment_secret


def token_file(settings: Settings) -> Path:
    """Where a generated token is kept while the services run; only its owner can read it."""
    return settings.paths.runs / "admin-token"


@contextmanager
def shared_admin_token(settings: Settings) -> Iterator[None]:
    """While the block runs, the environment has an admin token; a generated one is also in a file."""
    if environment_secret(ADMIN_TOKEN_VARIABLE):
        yield
        return
    file, token = token_file(settings), secrets.token_urlsafe(24)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(token + "\n")
    os.environ[ADMIN_TOKEN_VARIABLE] = token
    try:
        yield
    finally:
        del os.environ[ADMIN_TOKEN_VARIABLE]
        with suppress(OSError):  # not the token of another `up` on the same runs
            if file.read_text(encoding="utf-8").strip() == token:
                file.unlink()


def admin_token(settings: Settings) -> str:
    """The token from the environment, or from the services that run here.

    Raises ConfigurationError if there is neither.
    """
    if token := environment_secret(ADMIN_TOKEN_VARIABLE):
        return token
    try:
        return token_file(settings).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"{ADMIN_TOKEN_VARIABLE} is not set and {token_file(settings)} is missing; set it, or start `research up`"
        ) from error
