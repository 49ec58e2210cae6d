"""The routes of other projects, for their unmodified clients.

| client | set it to | route |
|---|---|---|
| ReSearch, ReCall | base URL `http://HOST:8000/compat/research` | `/search`, `/batch_search` |
| Search-R1, verl, SkyRL, slime | `http://HOST:8000/retrieve` | `/retrieve` |
| R1-Searcher | `http://HOST:8000/queries` | `/queries` |

The shapes match each project's released server; `contents` is `"Title"\\ntext`, which all clients split at the first
newline. These clients send whatever a model wrote, and few of them check the status. So a blank query has no hits, an
overlong one is truncated, and a busy server answers 503, the status on which some clients retry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from research.errors import ServiceBusyError
from research.schemas import ErrorBody
from services.retriever.api.answers import Frame, UnreadAnswers
from services.retriever.api.limits import require_within_limits
from services.retriever.retriever import Retriever
from services.retriever.types import HitDict, HitDicts
from services.web.disconnect import CLIENT_CLOSED_REQUEST, cancel_on_disconnect
from services.web.errors import HttpError, ValidationRoute

COMPATIBLE_ROUTES = ("/compat/research/search", "/compat/research/batch_search", "/retrieve", "/queries")

Count = Annotated[int, Field(ge=1)]
# How many there may be is a setting; at the first that is no text, the others are not looked at.
Texts = Annotated[list[str], Field(fail_fast=True)]

_RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (413, 422, 503)}


class _Lenient(BaseModel):
    """These clients may send other fields, and as many queries as `retriever.max_queue_queries` allows."""

    most_values: ClassVar[int] = 100_000


class ReSearchQuery(_Lenient):
    """`/search` of ReSearch and ReCall."""

    query: str
    top_n: Count = 10
    return_score: bool = False


class ReSearchQueries(_Lenient):
    """`/batch_search` of ReSearch and ReCall."""

    query: Texts
    top_n: Count = 10
    return_score: bool = False


class Retrieve(_Lenient):
    """`/retrieve` of Search-R1; SkyRL calls the field `query`: one query or a list. `topk` defaults to 3."""

    queries: Texts | None = None
    query: str | Texts | None = None
    topk: Count | None = None
    return_scores: bool = False


class R1Queries(_Lenient):
    """`/queries` of R1-Searcher."""

    queries: Texts
    k: Count = 3


def compatible_routes(retriever: Retriever, unread: UnreadAnswers) -> APIRouter:
    """The routes; all search the index of `corpus.index`."""
    router = APIRouter(tags=["compatible"], responses=_RESPONSES, route_class=ValidationRoute)
    searcher = _Searcher(retriever, unread)

    @router.post("/compat/research/search")
    async def research_search(body: ReSearchQuery, request: Request) -> Response:
        """Answer one query with a list of documents, or with `[documents, scores]`."""
        found = await searcher.search(request, "query", [body.query], ("top_n", body.top_n))
        if found is None:
            return _closed()
        scores = _scores(found[0])
        return searcher.respond(found, _documents, lambda parts: [parts[0], scores] if body.return_score else parts[0])

    @router.post("/compat/research/batch_search")
    async def research_batch_search(body: ReSearchQueries, request: Request) -> Response:
        """Answer several queries with one list of documents per query, or with `[documents, scores]`."""
        found = await searcher.search(request, "query", body.query, ("top_n", body.top_n))
        if found is None:
            return _closed()
        scores = list(map(_scores, found))
        return searcher.respond(found, _documents, lambda parts: [parts, scores] if body.return_score else parts)

    @router.post("/retrieve")
    async def retrieve(body: Retrieve, request: Request) -> Response:
        """Answer one or several queries with one list of documents per query, each with its score if requested."""
        if (body.queries is None) == (body.query is None):
            raise HttpError(422, "invalid_request", "give either `queries` or `query`")
        queries = [body.query] if isinstance(body.query, str) else body.query or body.queries or []
        found = await searcher.search(request, "queries", queries, ("topk", body.topk or 3))
        if found is None:
            return _closed()
        shape = _scored_documents if body.return_scores else _documents
        return searcher.respond(found, shape, lambda parts: {"result": parts})

    @router.post("/queries")
    async def r1_searcher(body: R1Queries, request: Request) -> Response:
        """Answer several queries with one list of texts per query; the client strips the number before each text."""
        found = await searcher.search(request, "queries", body.queries, ("k", body.k))
        if found is None:
            return _closed()
        queries = [_utf8(query) for query in body.queries]
        return searcher.respond(found, _numbered, lambda parts: {"queries": queries, "answers": parts})

    return router


class _Searcher:
    """Searches for any text: blank queries have no hits, overlong ones are truncated."""

    def __init__(self, retriever: Retriever, unread: UnreadAnswers) -> None:
        self._retriever = retriever
        self._unread = unread

    async def search(
        self, request: Request, field: str, queries: Sequence[str], top_k: tuple[str, int]
    ) -> list[HitDicts] | None:
        """The hits of each query, or None if the client disconnected."""
        limits = self._retriever.settings.retriever
        texts = [query.strip()[: limits.max_query_chars] for query in queries]
        require_within_limits(limits, field=field, texts=texts, top_k=top_k)
        index = self._retriever.index(None)
        with self._busy_as_503():
            found = await cancel_on_disconnect(
                request, self._retriever.search(index, [text for text in texts if text], top_k[1])
            )
        if found is None:
            return None
        answers = iter(found)
        return [next(answers).hits if text else [] for text in texts]

    def respond(self, found: list[HitDicts], shape: Callable[[HitDicts], Any], frame: Frame) -> Response:
        """As `UnreadAnswers.respond`."""
        with self._busy_as_503():
            return self._unread.respond(found, shape, frame)

    @contextmanager
    def _busy_as_503(self) -> Iterator[None]:
        try:
            yield
        except ServiceBusyError as error:
            raise HttpError(503, "busy", str(error), self._retriever.retry_headers()) from error


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _document(hit: HitDict) -> dict[str, Any]:
    return {"id": hit["id"], "contents": f'"{hit["title"]}"\n{hit["text"]}'}


def _documents(hits: HitDicts) -> list[dict[str, Any]]:
    return list(map(_document, hits))


def _scored_documents(hits: HitDicts) -> list[dict[str, Any]]:
    return [{"document": _document(hit), "score": hit["score"]} for hit in hits]


def _numbered(hits: HitDicts) -> list[str]:
    return [f"{rank}\t{hit['title']} {hit['text']}" for rank, hit in enumerate(hits)]


def _scores(hits: HitDicts) -> list[float]:
    return [float(hit["score"]) for hit in hits]


def _closed() -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
