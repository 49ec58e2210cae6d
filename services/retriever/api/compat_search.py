"""Searches for clients that do not retry: they wait for a place, in portions, however many queries they bring.

The servers that these clients were written for queue whatever arrives, and listen only once they have loaded. A client
that reads the body without looking at the status takes a refusal for an empty result, and trains on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request, Response

from research.errors import ServiceBusyError
from services.retriever.api.answers import Dumps, UnreadAnswers
from services.retriever.serving import NotReadyError, Serving, Target
from services.retriever.types import HitDicts, QueryResult
from services.web.disconnect import CLIENT_CLOSED_REQUEST, cancel_on_disconnect
from services.web.errors import HttpError

logger = logging.getLogger(__name__)

# Clients of such servers wait for at least as long.
PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.02
_MOST_WAITING = 1000
# Of a portion, whose answer is in memory at once; requests of one portion are answered with a length.
_PORTION_QUERIES = 1024
_PORTION_HITS = 4000
# Ten times what a benchmark's whole question set asks for; more would keep a connection busy for minutes.
_MOST_HITS = 1_000_000
# Portions of streamed answers that are in memory at once, those included that a client has not read yet.
_STREAMED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Form:
    """An answer as a client reads it: `head`, the hits of each query in a shape, separated, and the tail.

    Attributes:
        tail: receives the scores of each query's hits.
        dumps: writes the hits of a query as `media_type`.
    """

    shape: Callable[[HitDicts], Any]
    head: bytes
    tail: Callable[[list[list[float]]], bytes]
    separator: bytes = b","
    dumps: Dumps = orjson.dumps
    media_type: str = "application/json"


class PatientSearch:
    """Answers requests of any length.

    Args:
        patience: seconds that a request waits while the retriever loads, and that each portion waits for a place.
    """

    def __init__(self, retriever: Serving[Any], unread: UnreadAnswers, patience: float = PATIENCE_SECONDS) -> None:
        self._retriever = retriever
        self._unread = unread
        self._patience = patience
        self._turn = asyncio.Lock()
        self._streamed = asyncio.Semaphore(_STREAMED_AT_ONCE)
        self._waiting = 0

    async def answer(self, request: Request, queries: Sequence[str], wanted: int | None, form: Form) -> Response:
        """Search and respond; blank queries have no hits, overlong ones are cut.

        Args:
            wanted: hits per query; brought within what a request may ask for.

        Raises:
            HttpError: 503 if the retriever does not get ready in time, or has no place; 422 if the hits are too large.
        """
        limits = self._retriever.settings.retriever
        texts = [query.strip()[: limits.max_query_chars] for query in queries]
        top_k = max(1, min(wanted or 1, limits.max_top_k))
        if len(texts) * top_k > _MOST_HITS:
            told = f"{len(texts)} queries with {top_k} hits each are above the limit of {_MOST_HITS} hits per request"
            raise HttpError(422, "invalid_request", told)
        size = max(1, min(_PORTION_QUERIES, _PORTION_HITS // top_k, self._retriever.most_in_time))
        portions = _portions(texts, size, limits.max_queue_chars // 8) or [[]]
        first = await cancel_on_disconnect(request, self._search(portions[0], top_k))
        if first is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        begun, scores = form.head + self._encode(form, first), _scores(first)
        try:
            if len(portions) > 1:
                return self._unread.stream(self._pieces(form, begun, scores, portions[1:], top_k), form.media_type)
            return self._unread.respond_bytes(begun + form.tail(scores), form.media_type)
        except ServiceBusyError as error:
            raise self._busy(error) from error

    async def _pieces(
        self, form: Form, begun: bytes, scores: list[list[float]], portions: Sequence[Sequence[str]], top_k: int
    ) -> AsyncGenerator[bytes]:
        yield begun
        del begun
        for number, portion in enumerate(portions, start=2):
            async with self._streamed:  # until the client has taken it, or was cut for not reading
                try:
                    found = await self._search(portion, top_k)
                    piece = form.separator + self._encode(form, found)
                except Exception as error:
                    # The status is sent; a client learns of a fault only by an answer that breaks off.
                    logger.warning(
                        "portion %d of %d failed; the answer is cut off: %s", number, len(portions) + 1, error
                    )
                    raise
                scores += _scores(found)
                yield piece
        yield form.tail(scores)

    def _encode(self, form: Form, found: Sequence[HitDicts]) -> bytes:
        return form.separator.join(self._unread.encode(found, form.shape, form.dumps))

    async def _search(self, texts: Sequence[str], top_k: int) -> list[HitDicts]:
        asked = [text for text in texts if text]
        if self._waiting >= _MOST_WAITING:
            raise self._busy(
                ServiceBusyError(f"{self._waiting} requests are waiting; try again later", reason="queue_full")
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience) as limit:
                async with self._turn:
                    searching = await self._admitted(asked, top_k)
                limit.reschedule(None)
            found = iter(await searching)
        except TimeoutError as error:
            raise self._why_not() from error
        except ServiceBusyError as error:
            raise self._busy(error) from error
        finally:
            self._waiting -= 1
        return [next(found).hits if text else [] for text in texts]

    async def _admitted(self, texts: Sequence[str], top_k: int) -> asyncio.Task[list[QueryResult]]:
        """A search that has a place in the queue; waits until there is one."""
        while True:
            index = await loaded_index(self._retriever)
            searching = asyncio.create_task(self._retriever.search(index, texts, top_k))
            try:
                await asyncio.sleep(0)  # by then it is admitted or refused
            except asyncio.CancelledError:
                searching.cancel()
                raise
            if not (searching.done() and isinstance(searching.exception(), ServiceBusyError)):
                return searching
            await asyncio.sleep(_POLL_SECONDS)

    def _why_not(self) -> HttpError:
        told = f"no place became free within {self._patience:g} s; try again later"
        return still_loading(self._retriever) or self._busy(ServiceBusyError(told, reason="queue_full"))

    def _busy(self, error: ServiceBusyError) -> HttpError:
        return HttpError(503, "busy", str(error), self._retriever.retry_headers(), reason=error.reason)


async def loaded_index(retriever: Serving[Target]) -> Target:
    """What requests without a name get, waited for while the retriever loads. Raises what `Serving.index` raises."""
    while True:
        try:
            return retriever.index(None)
        except NotReadyError:
            if retriever.status.status != "loading":
                raise
        await asyncio.sleep(_POLL_SECONDS)


def still_loading(retriever: Serving[Any]) -> HttpError | None:
    """The refusal of a request that has waited long enough for the retriever to load, or None if it has loaded."""
    if retriever.status.status != "loading":
        return None
    told = f"the retriever is loading: {retriever.status.detail}"
    return HttpError(503, "not_ready", told, {"Retry-After": "1"})


def _portions(texts: Sequence[str], size: int, chars: int) -> list[list[str]]:
    """The texts in order, cut where a portion would have more than so many, or so many characters together.

    A portion that fills the queue would be let in only once the queue is empty, and all others would wait with it.
    """
    portions: list[list[str]] = []
    left = 0
    for text in texts:
        if not portions or len(portions[-1]) == size or len(text) > left:
            portions.append([])
            left = chars
        portions[-1].append(text)
        left -= len(text)
    return portions


def _scores(found: Sequence[HitDicts]) -> list[list[float]]:
    return [[float(hit["score"]) for hit in hits] for hits in found]
