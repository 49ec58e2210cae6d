"""Errors of the retriever over HTTP: the status and body for each of its own errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from research.errors import ResearchError, ServiceBusyError, ServiceError
from research.schemas import ErrorBody
from services.retriever.serving import NotReadyError, Serving, UnknownIndexError
from services.web.errors import HttpError

# For the OpenAPI description of a route.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        402: "The budget of web searches is spent; the message names the setting to raise",
        409: "With `web.replay`, a query is not in the record; or the search engine refuses the key",
        413: "The body is too large",
        422: "A field is missing, invalid or above its limit; the message names it",
        429: "Too many queries are waiting; try again after `Retry-After` seconds",
        502: "The search engine fails",
        503: "The retriever is still loading, or the search engine wants a pause",
        507: "The disk is full, so nothing of the web is asked for",
    }.items()
}


def as_http_error(retriever: Serving[Any]) -> Callable[[ResearchError], HttpError | None]:
    """A function that maps the retriever's errors to HTTP errors and counts refusals."""

    def map_error(error: ResearchError) -> HttpError | None:
        if isinstance(error, ServiceBusyError):
            retriever.metrics.count_rejected()
            return HttpError(429, "busy", str(error), retriever.retry_headers(), reason=error.reason)
        if isinstance(error, NotReadyError):
            return HttpError(503, "not_ready", str(error), {"Retry-After": "1"})
        if isinstance(error, UnknownIndexError):
            return HttpError(422, "invalid_request", str(error))
        if isinstance(error, ServiceError):
            return HttpError(500, "search_failed", "the search failed; see the retriever's log")
        if isinstance(error, HttpError) and error.error == "busy":
            retriever.metrics.count_rejected()
        return None

    return map_error
