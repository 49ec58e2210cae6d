"""The limits of a request, on every search route."""

from __future__ import annotations

from collections.abc import Sequence

from research.settings.retriever import RetrieverConfig
from services.web.errors import HttpError


class InvalidFieldError(HttpError):
    """A field is well-formed but above a limit of this server."""

    def __init__(self, message: str) -> None:
        super().__init__(422, "invalid_request", message)


def require_within_limits(limits: RetrieverConfig, *, field: str, texts: Sequence[str], top_k: tuple[str, int]) -> None:
    """Raise InvalidFieldError, naming the field, if a request asks for more than it may."""
    name, wanted = top_k
    if wanted > limits.max_top_k:
        raise InvalidFieldError(f"{name}: {wanted} is above the limit of {limits.max_top_k}")
    if len(texts) > limits.max_queue_queries:
        raise InvalidFieldError(f"{field}: {len(texts)} queries are above the limit of {limits.max_queue_queries}")
    if len(texts) * wanted > limits.max_hits:
        raise InvalidFieldError(
            f"{name}: {len(texts)} queries with {wanted} hits each are above the limit of {limits.max_hits} per request"
        )
    if (longest := max(map(len, texts), default=0)) > limits.max_query_chars:
        raise InvalidFieldError(f"{field}: {longest} characters are above the limit of {limits.max_query_chars}")
