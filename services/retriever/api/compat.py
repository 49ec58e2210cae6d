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

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from research.errors import ServiceBusyError
from research.schemas import ErrorBody
from services.retriever.api.limits import json_response, require_within_limits
from services.retriever.retriever import Retriever
from services.retriever.types import HitDict, HitDicts
from services.web.disconnect import CLIENT_CLOSED_REQUEST, cancel_on_disconnect
from services.web.errors import HttpError

COMPATIBLE_ROUTES = ("/compat/research/search", "/compat/research/batch_search", "/retrieve", "/queries")

Count = Annotated[int, Field(ge=1)]

_RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (413, 422, 503)}


class ReSearchQuery(BaseModel):
    """`/search` of ReSearch and ReCall."""

    query: str
    top_n: Count = 10
    return_score: bool = False


class ReSearchQueries(BaseModel):
    """`/batch_search` of ReSearch and ReCall."""

    query: list[str]
    top_n: Count = 10
    return_score: bool = False


class Retrieve(BaseModel):
    """`/retrieve` of Search-R1; SkyRL calls the field `query`: one query or a list. `topk` defaults to 3."""

    queries: list[str] | None = None
    query: str | list[str] | None = None
    topk: Count | None = None
    return_scores: bool = False


class R1Queries(BaseModel):
    """`/queries` of R1-Searcher."""

    queries: list[str]
    k: Count = 3


def compatible_routes(retriever: Retriever) -> APIRouter:
    """The routes; all search the index of `corpus.index`."""
    router = APIRouter(tags=["compatible"], responses=_RESPONSES)
    searcher = _Searcher(retriever)

    @router.post("/compat/research/search")
    async def research_search(body: ReSearchQuery, request: Request) -> Response:
        """Answer one query with a list of documents, or with `[documents, scores]`."""
        found = await searcher.search(request, "query", [body.query], ("top_n", body.top_n))
        if found is None:
            return _closed()
        documents = [_document(hit) for hit in found[0]]
        return json_response([documents, _scores(found[0])] if body.return_score else documents)

    @router.post("/compat/research/batch_search")
    async def research_batch_search(body: ReSearchQueries, request: Request) -> Response:
        """Answer several queries with one list of documents per query, or with `[documents, scores]`."""
        found = await searcher.search(request, "query", body.query, ("top_n", body.top_n))
        if found is None:
            return _closed()
        documents = [[_document(hit) for hit in hits] for hits in found]
        return json_response([documents, [_scores(hits) for hits in found]] if body.return_score else documents)

    @router.post("/retrieve")
    async def retrieve(body: Retrieve, request: Request) -> Response:
        """Answer one or several queries with one list of documents per query, each with its score if requested."""
        if (body.queries is None) == (body.query is None):
            raise HttpError(422, "invalid_request", "give either `queries` or `query`")
        queries = [body.query] if isinstance(body.query, str) else body.query or body.queries or []
        found = await searcher.search(request, "queries", queries, ("topk", body.topk or 3))
        if found is None:
            return _closed()
        shape = _scored_document if body.return_scores else _document
        return json_response({"result": [[shape(hit) for hit in hits] for hits in found]})

    @router.post("/queries")
    async def r1_searcher(body: R1Queries, request: Request) -> Response:
        """Answer several queries with one list of texts per query; the client strips the number before each text."""
        found = await searcher.search(request, "queries", body.queries, ("k", body.k))
        if found is None:
            return _closed()
        answers = [[f"{rank}\t{hit['title']} {hit['text']}" for rank, hit in enumerate(hits)] for hits in found]
        return json_response({"queries": [_utf8(query) for query in body.queries], "answers": answers})

    return router


class _Searcher:
    """Searches for any text: blank queries have no hits, overlong ones are truncated."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    async def search(
        self, request: Request, field: str, queries: Sequence[str], top_k: tuple[str, int]
    ) -> list[HitDicts] | None:
        """The hits of each query, or None if the client disconnected."""
        limits = self._retriever.settings.retriever
        texts = [query.strip()[: limits.max_query_chars] for query in queries]
        require_within_limits(limits, field=field, texts=texts, top_k=top_k)
        index = self._retriever.index(None)
        try:
            found = await cancel_on_disconnect(
                request, self._retriever.search(index, [text for text in texts if text], top_k[1])
            )
        except ServiceBusyError as error:
            raise HttpError(503, "busy", str(error), self._retriever.retry_headers()) from error
        if found is None:
            return None
        answers = iter(found)
        return [next(answers).hits if text else [] for text in texts]


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _document(hit: HitDict) -> dict[str, Any]:
    return {"id": hit["id"], "contents": f'"{hit["title"]}"\n{hit["text"]}'}


def _scored_document(hit: HitDict) -> dict[str, Any]:
    return {"document": _document(hit), "score": hit["score"]}


def _scores(hits: HitDicts) -> list[float]:
    return [float(hit["score"]) for hit in hits]


def _closed() -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
