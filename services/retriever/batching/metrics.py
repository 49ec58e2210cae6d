"""Prometheus metrics of one retriever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.retriever.batching.pipeline import BatchReport
from services.retriever.batching.result_cache import ResultCache

_SUMMARY_SECONDS = 60.0
logger = logging.getLogger(__name__)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Summary:
    """Logs what the batches took, one line per minute while there are any."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._queries = 0
        self._worst = {"waited": 0.0, "encoded": 0.0, "searched": 0.0}

    def add(self, report: BatchReport) -> None:
        """Count one batch that has answers."""
        first = report.answers[0]
        self._queries += report.queries
        for name, seconds in (
            ("waited", max(answer.queue_seconds for answer in report.answers)),
            ("encoded", first.encode_seconds),
            ("searched", first.search_seconds),
        ):
            self._worst[name] = max(self._worst[name], seconds)
        if (passed := time.monotonic() - self._begun) >= _SUMMARY_SECONDS:
            worst = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in self._worst.items())
            logger.info("%d queries in %.0f s; maxima: %s", self._queries, passed, worst)
            self.__init__()  # type: ignore[misc]


class Metrics:
    """The metrics, in a registry of their own, so that two apps in one process do not share counts."""

    def __init__(self, cache: ResultCache, queue_depth: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._summary = Summary()
        self._requests = Histogram(
            "research_retriever_request_seconds",
            "Seconds until a request was answered, by route and status.",
            ["route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = self._seconds("research_retriever_queue_seconds", "Seconds a query waited for its batch.")
        self._encode = self._seconds("research_retriever_encode_seconds", "Seconds to encode a batch.")
        self._search = self._seconds(
            "research_retriever_search_seconds", "Seconds to search a batch and read its passages."
        )
        self._batch = Histogram(
            "research_retriever_batch_queries",
            "Distinct queries in a batch.",
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self._merged = Counter(
            "research_retriever_merged", "Queries coalesced with an equal one in flight.", registry=registry
        )
        self._dropped = Counter(
            "research_retriever_dropped", "Queries dropped because the client had disconnected.", registry=registry
        )
        self._rejected = Counter(
            "research_retriever_rejected",
            "Requests refused because the queue was full or the service was shutting down.",
            registry=registry,
        )
        for name, text, read in (
            ("cache_found", "Queries answered from the cache.", lambda: cache.found),
            ("cache_missed", "Queries that were not in the cache.", lambda: cache.missed),
            ("cache_bytes", "Size of the cache.", lambda: cache.size_bytes),
        ):
            self.add_gauge(name, text, read)
        self.add_gauge("queue_depth", "Queries waiting now.", queue_depth)

    def add_gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A figure that something else counts: it may only grow, but a Counter cannot take its value from elsewhere."""
        Gauge(f"research_retriever_{name}", text, registry=self._registry).set_function(read)

    def observe_batch(self, report: BatchReport) -> None:
        """Count one batch."""
        self._dropped.inc(report.dropped)
        if not report.answers:
            return
        first = report.answers[0]
        self._summary.add(report)
        self._batch.observe(report.queries)
        self._merged.inc(report.merged)
        self._encode.observe(first.encode_seconds)
        self._search.observe(first.search_seconds)
        for answer in report.answers:
            self._queue.observe(answer.queue_seconds)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(route, str(status)).observe(seconds)

    def count_rejected(self) -> None:
        """Count one refused request."""
        self._rejected.inc()

    def render(self) -> bytes:
        """The text form that Prometheus scrapes."""
        return generate_latest(self._registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self._registry)
