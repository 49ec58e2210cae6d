"""Prometheus metrics of one retriever."""

from __future__ import annotations

import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.retriever.cache import ResultCache
from services.retriever.pipeline import BatchReport

_logger = logging.getLogger(__name__)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """A registry of its own, so that two apps in one process do not share counts."""

    def __init__(self, cache: ResultCache, queue_depth: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Histogram(
            "retriever_request_seconds",
            "Seconds until a request was answered, by route and status.",
            ["route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = self._seconds("retriever_queue_seconds", "Seconds a query waited for its batch.")
        self._encode = self._seconds("retriever_encode_seconds", "Seconds to encode a batch.")
        self._search = self._seconds("retriever_search_seconds", "Seconds to search a batch and read its passages.")
        self._batch = Histogram(
            "retriever_batch_queries",
            "Different queries in a batch.",
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self._merged = Counter("retriever_merged", "Queries answered by an equal one's batch row.", registry=registry)
        self._dropped = Counter("retriever_dropped", "Queries dropped: the client had gone.", registry=registry)
        self._rejected = Counter("retriever_rejected", "Requests refused: the queue was full.", registry=registry)
        # Counted in the cache itself: they only grow, but a Counter cannot be read from elsewhere.
        for name, text, read in (
            ("retriever_cache_found", "Queries answered from the cache.", lambda: cache.found),
            ("retriever_cache_missed", "Queries that were not in the cache.", lambda: cache.missed),
            ("retriever_cache_bytes", "Size of the cache.", lambda: cache.size_bytes),
        ):
            Gauge(name, text, registry=registry).set_function(read)
        Gauge("retriever_queue_depth", "Queries that wait now.", registry=registry).set_function(queue_depth)

    def observe_batch(self, report: BatchReport) -> None:
        """Count one batch."""
        self._dropped.inc(report.dropped)
        if not report.answers:
            return
        first = report.answers[0]
        _logger.debug(
            "%d queries: waited %.4f s, encoded %.4f s, searched %.4f s",
            report.queries,
            max(answer.queue_seconds for answer in report.answers),
            first.encode_seconds,
            first.search_seconds,
        )
        self._batch.observe(report.queries)
        self._merged.inc(len(report.answers) - report.queries)
        self._encode.observe(first.encode_seconds)
        self._search.observe(first.search_seconds)
        for answer in report.answers:
            self._queue.observe(answer.queue_seconds)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(route, str(status)).observe(seconds)

    def count_rejected(self) -> None:
        """Count one request that was refused for want of room."""
        self._rejected.inc()

    def render(self) -> bytes:
        """The text form that Prometheus scrapes."""
        return generate_latest(self._registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self._registry)
