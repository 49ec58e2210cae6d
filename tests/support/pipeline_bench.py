"""A pipeline over an encoder and an index that are fakes and can be held still, for tests of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from services.retriever.batching.batch_queue import Limits
from services.retriever.batching.pipeline import BatchReport, SearchPipeline
from services.retriever.batching.result_cache import ResultCache
from services.retriever.types import HitDicts, Query, TokenIds, Vectors


class FakeEncoder:
    """A token a letter; holds each batch until `go` is set; breaks on a "!"."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.entered = threading.Event()
        self.hold_after = -1  # further batches until one is held again, until `release`
        self.held, self.release = threading.Event(), threading.Event()
        self.faults: dict[str, BaseException] = {}  # raised once by the method of that name

    def _may_fail(self, method: str) -> None:
        if fault := self.faults.pop(method, None):
            raise fault

    def tokenize(self, queries: Sequence[str]) -> list[TokenIds]:
        self._may_fail("tokenise")
        return [[ord(letter) for letter in query] for query in queries]

    def encode(self, rows: Sequence[TokenIds]) -> Vectors:
        self.batches.append(["".join(map(chr, row)) for row in rows])
        self.entered.set()
        assert self.go.wait(timeout=10)
        self._may_fail("encode")
        self.hold_after -= 1
        if self.hold_after == 0:
            self.held.set()
            assert self.release.wait(timeout=10)
        if any(ord("!") in row for row in rows):
            raise RuntimeError("poisoned")
        return np.array([[float(sum(row))] for row in rows], dtype=np.float32)


class FakeIndex:
    """Answers `text` with hits `key/text#0`, `key/text#1`, …; checks that text and vector belong together."""

    def __init__(self, key: str = "index@1") -> None:
        self.key = key
        self.searches: list[list[str]] = []
        self.broken = False
        self.failure: Exception | None = None
        self.when: threading.Event | None = None  # the failure waits for it

    def search(self, texts: Sequence[str], vectors: Vectors, top_k: int) -> list[HitDicts]:
        self.searches.append(list(texts))
        if self.broken:
            raise RuntimeError("no index today")
        if self.failure:
            assert self.when is None or self.when.wait(timeout=10)
            raise self.failure
        assert [sum(map(ord, text)) for text in texts] == vectors[:, 0].tolist()
        return [[{"id": f"{self.key}/{text}#{rank}", "score": 1.0} for rank in range(top_k)] for text in texts]


class Bench:
    """A started pipeline over fakes, and what it reported."""

    def __init__(self, limits: Limits, merge: bool, cache_bytes: int, max_wait: float = 60) -> None:
        self.encoder, self.index = FakeEncoder(), FakeIndex()
        self.reports: list[BatchReport] = []
        self.cache = ResultCache(cache_bytes)
        self.pipeline = SearchPipeline(
            self.encoder, self.cache, limits, merge=merge, max_wait=max_wait, observe=self.reports.append
        )
        self.pipeline.start()

    def submit(self, *texts: str, top_k: int = 1, index: FakeIndex | None = None) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self._ids([Query(text, top_k, index or self.index) for text in texts]))

    async def occupy(self) -> asyncio.Task[list[str]]:
        """Submit one query and return once the encoder is busy with it."""
        task = self.submit("first")
        assert await asyncio.to_thread(self.encoder.entered.wait, 10)
        return task

    async def waiting(self, depth: int) -> None:
        """Return once so many queries wait and all of them are tokenised."""
        while self.pipeline.depth != depth or self.pipeline._batch_queue.tokenized != depth:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def _ids(self, queries: list[Query]) -> list[str]:
        answers = await self.pipeline.submit(queries)
        return ["+".join(str(hit["id"]) for hit in answer.hits).replace("index@1/", "") for answer in answers]


def with_bench(
    scenario: Callable[[Bench], Awaitable[None]],
    *,
    batch: int = 8,
    batch_tokens: int = 1000,
    queue: int = 16,
    queue_chars: int = 10_000,
    max_wait: float = 60,
    merge: bool = True,
    cache_bytes: int = 0,
) -> Bench:
    """Run a scenario on a fresh bench, then close the pipeline."""

    async def main() -> Bench:
        bench = Bench(Limits(batch, batch_tokens, queue, queue_chars), merge, cache_bytes, max_wait)
        try:
            async with asyncio.timeout(20):
                await scenario(bench)
        finally:
            bench.encoder.go.set()
            await bench.pipeline.close()
        return bench

    return asyncio.run(main())
