"""The life of the retriever: checked before the port opens, loaded behind it, drained at the end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from research.config import Settings
from research.errors import ResearchError
from research.schemas import ServiceStatus
from services.retriever.cache import ResultCache
from services.retriever.checkpoint import open_checkpoint
from services.retriever.encoder import Encoder, load_encoder
from services.retriever.metrics import Metrics
from services.retriever.pipeline import Limits, SearchPipeline
from services.retriever.published import SearchIndex
from services.retriever.search import Answer, Query

_logger = logging.getLogger(__name__)


class NotReadyError(ResearchError):
    """The service is loading, or failed to."""


class UnknownIndexError(ResearchError):
    """No index of that name is served."""


class Retriever:
    """The service behind the routes.

    Creating one opens the indexes and compares them with the encoder's files, which takes well under a second even
    for a large index; `start` then loads the encoder without blocking.

    Raises:
        AssetError, ConfigurationError: an index and the encoder are missing, broken, or do not fit each other.
    """

    def __init__(self, settings: Settings, on_failure: Callable[[], None]) -> None:
        self.settings = settings
        self.status = ServiceStatus(status="loading", detail="not started")
        self.failure: Exception | None = None
        self.checkpoint = open_checkpoint(settings.encoder.name, settings.paths.data)
        names = dict.fromkeys([settings.corpus.index, *settings.retriever.indexes])
        self.indexes = {name: self._open(name) for name in names}
        self.cache = ResultCache(settings.retriever.cache_mib * 2**20)
        self.metrics = Metrics(self.cache, queue_depth=lambda: self._pipeline.depth if self._pipeline else 0)
        self._on_failure = on_failure
        self._pipeline: SearchPipeline | None = None
        self._loading: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()

    def start(self) -> None:
        """Begin to load; `status` tells how far it is."""
        self._loading = asyncio.create_task(self._load(), name="load")

    async def close(self) -> None:
        """Answer what waits, then stop."""
        if self._loading is not None:
            await self._loading
        if self._pipeline is not None:
            await self._pipeline.close()

    def index(self, name: str | None) -> SearchIndex:
        """The index of that name, or the one of `corpus.index`; raises UnknownIndexError."""
        try:
            return self.indexes[name or self.settings.corpus.index]
        except KeyError:
            raise UnknownIndexError(f"index: {name!r} is not served; there are {', '.join(self.indexes)}") from None

    async def search(self, index: SearchIndex, texts: Sequence[str], top_k: int) -> list[Answer]:
        """Answer the queries of one request, in order.

        Raises:
            NotReadyError: the encoder is not loaded.
            ServiceBusyError: too many queries wait already.
        """
        if self._pipeline is None:
            raise NotReadyError(f"the retriever is {self.status.status}: {self.status.detail}")
        return await self._pipeline.submit([Query(text, top_k, index) for text in texts])

    async def reload(self, name: str) -> SearchIndex:
        """Serve what is published under this name now; searches under way end with what they began with.

        Raises:
            UnknownIndexError: it is not served.
            AssetError, ConfigurationError: what is published cannot be served; the old index stays.
        """
        async with self._reloading:
            self.index(name)
            self.indexes[name] = opened = await asyncio.to_thread(self._open, name)
        _logger.info("index %s is served as of revision %s", name, opened.manifest.revision)
        return opened

    def retry_headers(self) -> dict[str, str]:
        """When a request that was refused may come again: after what waits now, by the pace of the latest batches."""
        wait = self._pipeline.expected_wait if self._pipeline else 0.0
        return {"Retry-After": str(max(1, math.ceil(wait)))}

    def _open(self, name: str) -> SearchIndex:
        settings = self.settings
        directory = settings.index_dir.with_name(name)
        return SearchIndex(name, directory, self.checkpoint, settings.encoder, settings.retriever.threads)

    async def _load(self) -> None:
        encoder = self.settings.encoder
        self.status = ServiceStatus(status="loading", detail=f"encoder {encoder.name} ({encoder.backend})")
        try:
            loaded = await asyncio.to_thread(self._load_encoder)
        except Exception as error:
            self.failure = error
            self.status = ServiceStatus(status="failed", detail=str(error))
            self._on_failure()
            return
        limits = self.settings.retriever
        self._pipeline = SearchPipeline(
            loaded,
            self.cache,
            Limits(limits.max_batch, limits.max_batch_tokens, limits.max_queue),
            merge=limits.merge,
            observe=self.metrics.observe_batch,
        )
        self._pipeline.start()
        self.status = ServiceStatus(status="ready")
        for index in self.indexes.values():
            _logger.info(
                "ready: %s, %d passages, revision %s", index.name, len(index.passages), index.manifest.revision
            )

    def _load_encoder(self) -> Encoder:
        settings = self.settings
        encoder = load_encoder(
            self.checkpoint,
            settings.encoder,
            settings.encoder.backend,
            settings.retriever.threads,
            settings.paths.data,
        )
        # The first run of a graph allocates its memory; no user should wait for that.
        warm = encoder.encode_queries(["warm up"])
        for index in self.indexes.values():
            index.search(["warm up"], warm, [1])
        return encoder
