"""Several retrievers with the same index as one; one that does not answer is left out until it is back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from research.clients import RetrieverClient
from research.errors import (
    ConditionsChangedError,
    ConfigurationError,
    ServiceBusyError,
    ServiceError,
    ServiceRefusalError,
)
from research.http.tries import RETRIES, tries
from research.passages import Passage, ScoredPassage
from research.routing import Load, choose

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_CHECK_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class _Server:
    client: RetrieverClient
    load: Load = field(init=False)
    check: asyncio.Task[None] | None = None  # under way while the server is left out

    def __post_init__(self) -> None:
        self.load = Load(self.client.url)


class Retrievers:
    """Like a `RetrieverClient` of several addresses. The same query goes to the same server, which has it cached."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float = 30.0,
        retries: int = 4,
        at_once: int | None = None,
        busy_timeout: float | None = None,
        follows: bool = False,
    ) -> None:
        """`follows`: once no server has the former index, take the one that all who answer have instead."""
        # The next server is a better second try than the same one.
        self._servers = [
            _Server(RetrieverClient(url, timeout=timeout, retries=0, at_once=at_once, busy_timeout=0.0)) for url in urls
        ]
        self._retries = retries
        self._busy_timeout = timeout if busy_timeout is None else busy_timeout
        self._revision: str | None = None
        self._follows = follows

    async def __aenter__(self) -> Retrievers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        checks = [server.check for server in self._servers if server.check is not None]
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        await asyncio.gather(*(server.client.close() for server in self._servers))

    async def check_ready(self) -> None:
        """Leave out the servers that are not ready or have another index than before, and take back the others.

        Raises:
            ServiceError: no server is ready.
            ConfigurationError: at the first check, two servers have different indexes.
        """
        answers = await asyncio.gather(*(_revision_of(server.client) for server in self._servers))
        revisions = {s.client.url: a for s, a in zip(self._servers, answers, strict=True) if isinstance(a, str)}
        there = set(revisions.values())
        moved_on = self._follows and len(there) == 1 and self._revision not in there
        if moved_on or (self._revision is None and revisions):
            if len(there) > 1:
                raise ConfigurationError(
                    "endpoints.retriever_urls: the retrievers have different indexes "
                    f"({', '.join(f'{url}: revision {revision}' for url, revision in revisions.items())}); "
                    "give each the same index directory"
                )
            self._revision = next(iter(revisions.values()))
            for server in self._servers:
                server.client.revision = self._revision
        faults = [self._fault(answer) for answer in answers]
        for server, fault in zip(self._servers, faults, strict=True):
            if fault is None:
                self._take_back(server)
            else:
                self._leave_out(server, fault)
        if None not in faults:
            raise ServiceError(str(faults[0]))

    async def search(self, query: str, top_k: int) -> list[Passage]:
        return [found.passage for found in await self.search_scored(query, top_k)]

    async def search_scored(self, query: str, top_k: int) -> list[ScoredPassage]:
        """Search at the server of this query, or at another if it fails; raises what `RetrieverClient` raises."""
        return await self._ask(query, lambda client: client.search_scored(query, top_k))

    async def open(self, page: str) -> list[Passage]:
        """As `RetrieverClient.open`, at the server of this page, or at another if it fails."""
        return await self._ask(page, lambda client: client.open(page))

    async def _ask(self, key: str, ask: Callable[[RetrieverClient], Awaitable[Found]]) -> Found:
        async for attempt in tries(
            RetrieverClient.kind,
            retries=self._retries,
            busy_seconds=self._busy_timeout,
            is_transient=lambda error: isinstance(error, _NoneAnsweredError),
        ):
            with attempt:
                return await self._ask_once(key, ask)
        raise AssertionError("the last error is raised")

    async def _ask_once(self, key: str, ask: Callable[[RetrieverClient], Awaitable[Found]]) -> Found:
        """Try each server in service once; all of them, if none is."""
        left = [server for server in self._servers if server.check is None] or list(self._servers)
        waits: list[float | None] = []  # of those that are busy
        while True:
            loads = [server.load for server in left]
            server = left[loads.index(choose(key, loads))]
            started = time.perf_counter()
            try:
                with server.load.request():
                    found = await ask(server.client)
            except (ServiceError, ConditionsChangedError) as error:
                status = error.status if isinstance(error, ServiceError) else None
                busy = isinstance(error, ServiceBusyError)
                if isinstance(error, ServiceRefusalError) or (status is not None and status < 500 and not busy):
                    raise  # the fault of the query, or of nobody whom another server could stand in for
                if isinstance(error, ServiceBusyError):
                    waits.append(error.retry_after)
                else:
                    self._leave_out(server, str(error))
                left.remove(server)
                if not left:
                    raise _none_answered(error, waits) from error
                RETRIES.labels(RetrieverClient.kind, getattr(error, "reason", "conditions")).inc()
                continue
            server.load.answered(1.0, time.perf_counter() - started)
            self._take_back(server)
            return found

    def _fault(self, answer: str | ServiceError) -> str | None:
        if isinstance(answer, ServiceError):
            return str(answer)
        if self._revision in (None, answer):
            return None
        return f"it has revision {answer} of the index, not {self._revision}"

    def _leave_out(self, server: _Server, fault: str) -> None:
        if server.check is None:
            logger.warning("the retriever at %s is left out: %s", server.client.url, fault)
            server.check = asyncio.create_task(self._wait_for(server))

    def _take_back(self, server: _Server) -> None:
        if server.check is not None:
            logger.warning("the retriever at %s is back", server.client.url)
            server.check.cancel()
            server.check = None

    async def _wait_for(self, server: _Server) -> None:
        fault: str | None = "it has just failed"
        while fault is not None:
            await asyncio.sleep(_CHECK_SECONDS)
            fault = self._fault(await _revision_of(server.client))
            if fault is not None and self._follows:
                with suppress(ServiceError, ConfigurationError):
                    await self.check_ready()  # it ends this very check, if this server is back
        self._take_back(server)


class _NoneAnsweredError(ServiceError):
    """No server could answer, but another try may succeed."""


def _none_answered(last: ServiceError | ConditionsChangedError, waits: Sequence[float | None]) -> ServiceError:
    """The error of a search that no server answered; `waits`: when to ask those again that are only busy."""
    if waits:
        return ServiceBusyError(str(last), 429, min((wait for wait in waits if wait is not None), default=None))
    if isinstance(last, ServiceError):
        return _NoneAnsweredError(str(last), last.status, reason=last.reason)
    return _NoneAnsweredError(str(last))


async def _revision_of(client: RetrieverClient) -> str | ServiceError:
    """The revision of the index that a server answers with, or why it does not."""
    try:
        await client.check_ready()
        return (await client.served())[1].revision
    except ServiceError as error:
        return error


def retriever_of(
    urls: Sequence[str],
    *,
    timeout: float = 30.0,
    retries: int = 4,
    at_once: int | None = None,
    busy_timeout: float | None = None,
    follows: bool = False,
) -> RetrieverClient | Retrievers:
    """What searches at one address or at several.

    Args:
        busy_timeout: seconds for which they are waited for while all are busy. Default: `timeout`.
        follows: as of `Retrievers`; one address is followed anyway.
    """
    if len(urls) == 1:
        return RetrieverClient(urls[0], timeout=timeout, retries=retries, at_once=at_once, busy_timeout=busy_timeout)
    return Retrievers(
        urls, timeout=timeout, retries=retries, at_once=at_once, busy_timeout=busy_timeout, follows=follows
    )
