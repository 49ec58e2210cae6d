"""The life cycle of the retriever: checked before the port opens, loaded once it is open, drained at the end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from research.schemas import ServiceStatus
from research.settings import Settings
from services.retriever.batching.batch_queue import Limits
from services.retriever.batching.metrics import Metrics
from services.retriever.batching.pipeline import SearchPipeline
from services.retriever.batching.result_cache import ResultCache
from services.retriever.batching.watch import StageWatch
from services.retriever.encoder.checkpoint import open_checkpoint
from services.retriever.encoder.encoder import Encoder, load_encoder
from services.retriever.index.manifest import read_manifest
from services.retriever.index.search_index import SearchIndex
from services.retriever.serving import NotReadyError, UnknownIndexError
from services.retriever.types import Query, QueryResult

logger = logging.getLogger(__name__)

# What is loaded cannot be interrupted; at the end it is waited for no longer than this.
_LOADING_SECONDS = 5.0
# To read all of an index from a slow disk takes minutes; an hour is a disk that does not answer.
READING_SECONDS, RELOAD_SECONDS = 3600.0, 600.0


class Retriever:
    """The service behind the routes.

    Creating one compares the manifests of the indexes with the encoder's files, which takes no time whatever their
    size; `start` then opens them and loads the encoder without blocking.

    Raises:
        AssetError, ConfigurationError: an index or the encoder is missing, or they do not match.
    """

    def __init__(self, settings: Settings, on_failure: Callable[[], None]) -> None:
        self.settings = settings
        self.status = ServiceStatus(status="loading", detail="not started")
        self.failure: Exception | None = None
        self.checkpoint = open_checkpoint(settings.encoder.name, settings.paths.data)
        self.names = list(dict.fromkeys([settings.corpus.index, *settings.retriever.indexes]))
        for name in self.names:
            read_manifest(self._directory(name)).check_encoder(self.checkpoint, settings.encoder, self._directory(name))
        self.indexes: dict[str, SearchIndex] = {}
        self.cache = ResultCache(settings.retriever.cache_mib * 2**20)
        self.metrics = Metrics(self.cache, queue_depth=lambda: self._pipeline.depth if self._pipeline else 0)
        self._on_failure = on_failure
        self._pipeline: SearchPipeline | None = None
        self._loading: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._opener = ThreadPoolExecutor(1, "reload")  # one that hangs keeps those after it waiting, not all threads
        self.reading = StageWatch()

    async def health(self) -> ServiceStatus:
        """Whether the retriever answers searches, and if not, what it is doing."""
        stuck = self.stuck
        return ServiceStatus(status="failed", detail=stuck) if stuck is not None else self.status

    @property
    def stuck(self) -> str | None:
        """What hangs, or None."""
        return (self._pipeline.stuck if self._pipeline is not None else None) or self.reading.stuck

    def start(self) -> None:
        """Begin loading; `status` reports the progress."""
        self._loading = asyncio.create_task(self._load(), name="load")

    async def close(self) -> None:
        """Answer the queries that wait, then stop."""
        if self._loading is not None:
            await asyncio.wait([self._loading], timeout=_LOADING_SECONDS)
        if self._pipeline is not None:
            await self._pipeline.close()
        self._opener.shutdown(wait=False, cancel_futures=True)

    def index(self, name: str | None) -> SearchIndex:
        """The index of that name, or the one of `corpus.index`.

        Raises:
            UnknownIndexError: it is not served.
            NotReadyError: it is not open yet, or searches hang.
        """
        name = name or self.settings.corpus.index
        if name not in self.names:
            raise UnknownIndexError(f"index: {name!r} is not served; the retriever serves {', '.join(self.names)}")
        if self._pipeline is None:
            raise NotReadyError(f"the retriever is {self.status.status}: {self.status.detail}")
        if (stuck := self._pipeline.stuck) is not None:
            raise NotReadyError(stuck)
        return self.indexes[name]

    async def search(self, index: SearchIndex, texts: Sequence[str], top_k: int) -> list[QueryResult]:
        """Answer the queries of one request, in order.

        Raises:
            ServiceBusyError: too many queries are waiting.
        """
        assert self._pipeline is not None, "an index exists only with a pipeline"
        # A lone surrogate, which JSON can carry and UTF-8 cannot, would fail the whole batch.
        sound = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return await self._pipeline.submit([Query(text, top_k, index) for text in sound])

    async def reload(self, name: str) -> SearchIndex:
        """Serve the revision now published under this name; searches in flight finish with the old one.

        Raises:
            UnknownIndexError: it is not served.
            AssetError, ConfigurationError: the published index cannot be served; the old one stays.
            TimeoutError: it was not opened in time; the old one stays.
        """
        async with asyncio.timeout(RELOAD_SECONDS), self._reloading:
            self.index(name)
            loop = asyncio.get_running_loop()
            self.indexes[name] = opened = await loop.run_in_executor(self._opener, self._open, name)
        logger.info("index %s now serves revision %s", name, opened.manifest.revision)
        return opened

    @property
    def is_full(self) -> bool:
        """Whether the queue is full; searches are then refused unread, even cached ones."""
        return self._pipeline is not None and self._pipeline.is_full

    @property
    def most_in_time(self) -> int:
        """As many as may wait: the encoder has no pace that it must keep to."""
        return self.settings.retriever.max_queue_queries

    def retry_headers(self) -> dict[str, str]:
        """When to retry a refused request: once the queries waiting now are done, at the pace of the latest batches."""
        wait = self._pipeline.expected_wait if self._pipeline else 0.0
        return {"Retry-After": str(max(1, math.ceil(wait)))}

    def _directory(self, name: str) -> Path:
        return self.settings.index_dir.with_name(name)

    def _open(self, name: str) -> SearchIndex:
        settings = self.settings
        threads = settings.retriever.threads
        with self.reading.at_work(f"opening the index {name}", READING_SECONDS):
            return SearchIndex.open(name, self._directory(name), self.checkpoint, settings.encoder, threads)

    async def _load(self) -> None:
        encoder = self.settings.encoder
        try:
            for place, name in enumerate(self.names, start=1):
                self._say_loading(f"index {name} ({place} of {len(self.names)})")
                self.indexes[name] = await asyncio.to_thread(self._open, name)
            self._say_loading(f"encoder {encoder.name} ({encoder.backend})")
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
            Limits(limits.max_batch_queries, limits.max_batch_tokens, limits.max_queue_queries, limits.max_queue_chars),
            merge=limits.coalesce,
            max_wait=limits.max_wait,
            observe=self.metrics.observe_batch,
        )
        self._pipeline.start()
        self.status = ServiceStatus(status="ready")
        for index in self.indexes.values():
            logger.info("ready: %s, %d passages, revision %s", index.name, len(index.passages), index.manifest.revision)

    def _say_loading(self, detail: str) -> None:
        self.status = ServiceStatus(status="loading", detail=detail)

    def _load_encoder(self) -> Encoder:
        settings = self.settings
        with self.reading.at_work("loading the encoder", READING_SECONDS):
            encoder = load_encoder(
                self.checkpoint,
                settings.encoder,
                settings.encoder.backend,
                settings.retriever.threads,
                settings.paths.data,
            )
        # The first run of a graph allocates its memory or compiles it; no user should wait for that. To a compiler,
        # one row and several rows are two graphs.
        encoder.encode_queries(["warm up"] * settings.retriever.max_batch_queries)
        warm = encoder.encode_queries(["warm up"])
        for index in self.indexes.values():
            index.search(["warm up"], warm, 1)
        return encoder
