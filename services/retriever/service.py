"""The life of the retriever: checked before the port opens, loaded behind it, drained at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from research.config import Settings
from research.errors import ResearchError
from research.schemas import ServiceStatus
from services.retriever.batching import Answer, MicroBatcher, Query
from services.retriever.checkpoint import open_checkpoint
from services.retriever.encoder import load_encoder
from services.retriever.engine import SearchEngine
from services.retriever.index import SearchIndex
from services.retriever.metrics import Metrics

_logger = logging.getLogger(__name__)


class NotReadyError(ResearchError):
    """The service is loading, or failed to."""


class Retriever:
    """The service behind the routes.

    Creating one opens the index and compares it with the encoder's files, which takes well under a second even
    for a large index; `start` then loads the encoder without blocking.

    Raises:
        AssetError, ConfigurationError: index and encoder are missing, broken, or do not fit each other.
    """

    def __init__(self, settings: Settings, on_failure: Callable[[], None]) -> None:
        self.settings = settings
        self.status = ServiceStatus(status="loading", detail="not started")
        self.failure: Exception | None = None
        self.checkpoint = open_checkpoint(settings.encoder.name, settings.paths.data)
        self.index = SearchIndex(settings.index_dir, self.checkpoint, settings.encoder, settings.retriever.threads)
        self.metrics = Metrics(queue_depth=lambda: self._batcher.depth if self._batcher else 0)
        self._on_failure = on_failure
        self._batcher: MicroBatcher | None = None
        self._loading: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load; `status` tells how far it is."""
        self._loading = asyncio.create_task(self._load(), name="load")

    async def close(self) -> None:
        """Answer what waits, then stop."""
        if self._loading is not None:
            await self._loading
        if self._batcher is not None:
            await self._batcher.close()

    async def search(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer the queries of one request, in order.

        Raises:
            NotReadyError: the encoder is not loaded.
            ServiceBusyError: too many queries wait already.
        """
        if self._batcher is None:
            raise NotReadyError(f"the retriever is {self.status.status}: {self.status.detail}")
        return await self._batcher.submit(queries)

    @property
    def expected_wait(self) -> float:
        """Seconds until what waits now will be done."""
        return self._batcher.expected_wait if self._batcher else 0.0

    async def _load(self) -> None:
        encoder = self.settings.encoder
        self.status = ServiceStatus(status="loading", detail=f"encoder {encoder.name} ({encoder.backend})")
        try:
            engine = await asyncio.to_thread(self._load_engine)
        except Exception as error:
            self.failure = error
            self.status = ServiceStatus(status="failed", detail=str(error))
            self._on_failure()
            return
        limits = self.settings.retriever
        self._batcher = MicroBatcher(
            engine.search,
            max_batch=limits.max_batch,
            max_queue=limits.max_queue,
            observe=self.metrics.observe_batch,
        )
        self._batcher.start()
        self.status = ServiceStatus(status="ready")
        _logger.info("ready: %d passages, revision %s", len(self.index.passages), self.index.manifest.recipe.revision)

    def _load_engine(self) -> SearchEngine:
        settings = self.settings
        encoder = load_encoder(
            self.checkpoint,
            settings.encoder,
            settings.encoder.backend,
            settings.retriever.threads,
            settings.paths.data,
        )
        engine = SearchEngine(encoder, self.index)
        # The first run of a graph allocates its memory; no user should wait for that.
        engine.search([Query("warm up", 1)])
        return engine
