"""Counts what a service refuses, and what it asks of others in vain: the same metrics for every service."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import REGISTRY, Counter, generate_latest

# By a name of ours, never by what a client sent.
REFUSED = Counter("research_refused_requests", "Requests that were refused or failed.", ["reason", "status"])
_NAMES = {status.value: status.name.lower() for status in HTTPStatus}
_SHARED = ("research_refused_requests_total", "research_client_retries_total", "research_client_failures_total")


@dataclass(slots=True)
class _Request:
    counted: bool = False


# Tasks and threads of a request have copies of its context, but the same object in it.
_current: ContextVar[_Request | None] = ContextVar("counted_request", default=None)


def begin_request() -> None:
    """Count what becomes of a new request from now on, in this task and in those that it starts."""
    _current.set(_Request())


def count_refusal(reason: str, status: int) -> None:
    """Count a refused or failed request."""
    REFUSED.labels(reason, str(status)).inc()
    if request := _current.get():
        request.counted = True


def count_if_nobody_did(status: int) -> None:
    """Count an answer whose reason nobody told, as vLLM's own routes do not, by the name of its status."""
    if (request := _current.get()) is None or request.counted:
        return
    count_refusal(_NAMES.get(status, "other"), status)


def shared_metrics() -> bytes:
    """The text form of refusals here, and of retries and failures of this process's clients."""
    return generate_latest(REGISTRY.restricted_registry(_SHARED))
