"""What the routes ask of a retriever, whether it searches an index or the web."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from research.errors import ResearchError
from research.schemas import ServiceStatus
from research.settings import Settings
from services.retriever.batching.metrics import Metrics
from services.retriever.types import QueryResult


class NotReadyError(ResearchError):
    """The service is loading, or failed to."""


class UnknownIndexError(ResearchError):
    """No index of that name is served."""


class Served(Protocol):
    """What is searched: `name` is that of requests, `revision` changes whenever its answers may."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...


Target = TypeVar("Target", bound=Served)


class Serving(Protocol[Target]):
    """The service behind the routes."""

    metrics: Metrics
    status: ServiceStatus

    @property
    def settings(self) -> Settings:
        """With the limits of requests in `settings.retriever`."""
        ...

    @property
    def stuck(self) -> str | None:
        """What hangs, or None."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether further searches are refused unread."""
        ...

    @property
    def most_in_time(self) -> int:
        """Queries of one search that can be done within `retriever.max_wait`."""
        ...

    def start(self) -> None:
        """Begin loading; `status` reports the progress."""
        ...

    async def close(self) -> None:
        """Answer the queries that wait, then stop."""
        ...

    async def health(self) -> ServiceStatus:
        """Whether searches are answered, and if not, why."""
        ...

    def retry_headers(self) -> dict[str, str]:
        """When to retry a refused request."""
        ...

    def index(self, name: str | None) -> Target:
        """What is served under a name, or what requests without one get. Raises UnknownIndexError, NotReadyError."""
        ...

    async def search(self, index: Target, texts: Sequence[str], top_k: int) -> list[QueryResult]:
        """Answer the queries of one request, in order. Raises ServiceBusyError, and HttpError with its own status."""
        ...
