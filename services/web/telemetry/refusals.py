"""Counts what a service refuses, and what it asks of others in vain: the same metrics for every service."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, generate_latest

# By a name of ours, never by what a client sent.
REFUSED = Counter("research_refused_requests", "Requests that were refused or failed.", ["reason", "status"])
_SHARED = ("research_refused_requests_total", "research_client_retries_total", "research_client_failures_total")


def count_refusal(reason: str, status: int) -> None:
    """Count a refused or failed request."""
    REFUSED.labels(reason, str(status)).inc()


def shared_metrics() -> bytes:
    """The text form of refusals here, and of retries and failures of this process's clients."""
    return generate_latest(REGISTRY.restricted_registry(_SHARED))
