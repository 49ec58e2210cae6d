"""Answers queries from the record, or from the engine: each is asked for once, however many wait for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from research.errors import AssetError, ServiceBusyError
from services.retriever.types import HitDict, HitDicts, QueryResult
from services.retriever.web.breaker import Breaker, Key
from services.retriever.web.engines.engine import Engine, Found
from services.retriever.web.record import Record
from services.retriever.web.refusals import (
    QUERY_REJECTED,
    disk_full,
    engine_failed,
    not_recorded,
    query_rejected,
    record_spoilt,
)
from services.retriever.web.upstream import Upstream
from services.web.errors import HttpError

logger = logging.getLogger(__name__)

_FAILED = 502
# Together with the time that the server waits for its requests, less than `stopping.GRACE_SECONDS`.
_CLOSE_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class _Question:
    """A query that the engine is asked, or is to be asked once there is a place."""

    asking: asyncio.Task[HitDicts] = field(init=False)
    waiters: int = 0
    sent: bool = False


class WebSearch:
    """One engine and its record.

    Args:
        upstream: what asks the engine; None to answer from the record alone.
        at_once: the most questions under way.
        most_waiting: questions that are under way or wait; further ones are refused.
        max_wait: seconds until a request is given up.
    """

    def __init__(
        self,
        engine: Engine,
        record: Record,
        upstream: Upstream | None,
        *,
        at_once: int,
        most_waiting: int,
        max_wait: float,
    ) -> None:
        self._engine, self._record, self._upstream = engine, record, upstream
        self._places = asyncio.Semaphore(at_once)
        self._most_waiting, self._max_wait = most_waiting, max_wait
        self._questions: dict[Key, _Question] = {}
        # What is paid for and could not be written; nothing is sent before it is.
        self._unwritten: dict[Key, list[Found]] = {}
        self._writing = asyncio.Lock()
        self.replayed = 0
        self._breaker = Breaker(lambda key: self._join(key, is_trial=True).asking)

    @property
    def depth(self) -> int:
        """Questions that are under way or wait."""
        return len(self._questions)

    @property
    def is_full(self) -> bool:
        return self.depth >= self._most_waiting

    @property
    def failing(self) -> str | None:
        """Why the engine seems to be down; None if it does not. Whoever asks makes it be asked again in a while."""
        self._breaker.try_again()
        return self._breaker.failing

    async def search(self, texts: Sequence[str], top_k: int) -> list[QueryResult]:
        """Answer queries in order; none is sent unless there is a place for all.

        Raises:
            ServiceBusyError: too many wait, or the answers took too long.
            HttpError: in the words of `refusals`.
        """
        begun = time.perf_counter()
        keys = [(self._engine.cut(text), top_k) for text in texts]
        if not all(query for query, _ in keys):
            raise query_rejected("it is blank")
        asked = {key: self._questions.get(key) for key in keys if not self._record.has(*key)}
        self._admit([key for key, question in asked.items() if question is None])
        # Only now: who is refused comes again soon.
        recorded = {key: self._recorded(key) for key in dict.fromkeys(keys) if key not in asked}
        # Before anything is waited for: what is admitted has its place.
        joined = {key: self._join(key) for key in asked}
        try:
            async with asyncio.timeout(self._max_wait):
                await asyncio.gather(*(asyncio.shield(question.asking) for question in joined.values()))
        except TimeoutError as error:
            told = f"the search was not done within {self._max_wait:g} s; try again later"
            raise ServiceBusyError(told, reason="too_slow") from error
        finally:
            for key, question in joined.items():
                self._leave(key, question)
        found = recorded | {key: question.asking.result() for key, question in joined.items()}
        seconds = time.perf_counter() - begun
        return [QueryResult(found[key], search_seconds=seconds if key in joined else 0.0) for key in keys]

    async def close(self) -> None:
        """Wait a little for what is paid for, to record it; give up the rest."""
        questions = list(self._questions.values())
        if sent := [question.asking for question in questions if question.sent]:
            await asyncio.wait(sent, timeout=_CLOSE_SECONDS)
        for question in questions:
            question.asking.cancel()
        await asyncio.gather(*(question.asking for question in questions), return_exceptions=True)
        try:
            await self._write()
        except HttpError as error:
            logger.warning("%d answers that are paid for are lost: %s", len(self._unwritten), error)
        if self._upstream is not None:
            await self._upstream.close()

    def _recorded(self, key: Key) -> HitDicts:
        try:
            found = self._record.get(*key)
        except AssetError as error:
            raise record_spoilt(str(error)) from error
        assert found is not None, "it is in the record"
        self.replayed += 1
        return _hits(found)

    def _admit(self, new: Sequence[Key]) -> None:
        if new and self._upstream is None:
            raise not_recorded(new[0][0], self._record.path)
        if new and (why := self.failing) is not None:
            raise engine_failed(why)
        if new and self.depth + len(new) > self._most_waiting:
            told = f"{self.depth} queries are waiting and the limit is {self._most_waiting}; try again later"
            raise ServiceBusyError(told, reason="queue_full")

    def _join(self, key: Key, *, is_trial: bool = False) -> _Question:
        question = self._questions.get(key)
        if question is None:
            question = self._questions[key] = _Question()
            question.asking = asyncio.create_task(self._ask(key, question, is_trial))
            question.asking.add_done_callback(lambda _: self._forget(key, question))
        question.waiters += 1
        return question

    def _leave(self, key: Key, question: _Question) -> None:
        question.waiters -= 1
        # What is sent is paid for, so it is recorded even if nobody waits for it any longer.
        if not question.waiters and not question.sent:
            question.asking.cancel()
            self._forget(key, question)

    def _forget(self, key: Key, question: _Question) -> None:
        if self._questions.get(key) is question:
            del self._questions[key]
        if question.asking.done() and not question.asking.cancelled():
            question.asking.exception()  # those who waited have been told

    async def _ask(self, key: Key, question: _Question, is_trial: bool) -> HitDicts:
        assert self._upstream is not None, "without it nothing is admitted"
        async with self._places:
            # It may have begun to fail since this was admitted.
            if not is_trial and (why := self._breaker.failing) is not None:
                raise engine_failed(why)
            await self._write()
            if not is_trial and self._record.has(*key):  # since this moment
                return self._recorded(key)
            question.sent = True
            try:
                found = await self._upstream.find(*key)
            except HttpError as error:
                # Who rejects one query after the other searches no more, and who asks would be told that nothing is
                # found for ever.
                if error.status == _FAILED or error.error == QUERY_REJECTED:
                    self._breaker.failed(key, str(error))
                else:
                    self._breaker.well()  # what is to be told is this, not what it did before
                raise
            self._breaker.answered(key)
        self._unwritten[key] = found
        await self._write()
        return _hits(found)

    async def _write(self) -> None:
        """Record what is paid for. Raises HttpError, and tries again next time."""
        async with self._writing:
            for key, found in list(self._unwritten.items()):
                try:
                    if not self._record.has(*key):  # as what a trial asks may be
                        await asyncio.to_thread(self._record.add, *key, found)
                except OSError as error:
                    raise disk_full(self._record.path, error) from error
                del self._unwritten[key]


def _hits(found: Sequence[Found]) -> HitDicts:
    return [_hit(each, rank) for rank, each in enumerate(found, 1)]


def _hit(found: Found, rank: int) -> HitDict:
    """A passage. Engines rank and rarely score, so the score is 1 over the rank."""
    fields = orjson.dumps({"url": found.url}).decode()
    return {"id": found.url, "title": found.title, "text": found.text, "score": 1 / rank, "fields": fields}
