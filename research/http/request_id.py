"""The id of the request that is being worked on: handed from service to service, and named in logs and errors."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

HEADER = "X-Request-ID"
# A log or a header takes any of these as it is.
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,96}")

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current() -> str | None:
    """The id of the request that this task works on, or None."""
    return _current.get()


def new() -> str:
    """An id for a request that came without one."""
    return uuid.uuid4().hex


def is_sane(given: str) -> bool:
    """Whether an id may be taken over from a caller."""
    return _SANE.fullmatch(given) is not None


def begin(name: str) -> None:
    """Work on a request from now on, in this task and in those that it starts."""
    _current.set(name)


@contextmanager
def working_on(name: str) -> Iterator[None]:
    """Work on a request while the block runs."""
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)
