"""The routes of other projects, for their unmodified clients.

| client | set it to | route |
|---|---|---|
| ReSearch, ReCall | base URL `http://HOST:8000/compat/research` | `/search`, `/batch_search` |
| Search-R1, verl, SkyRL, slime, rLLM | `http://HOST:8000/retrieve` (rLLM: without the route) | `/retrieve`, `/health` |
| R1-Searcher | `http://HOST:8000/queries` | `/queries` |
| ASearcher, RLinf | `http://HOST:8000` | `/retrieve`, `/access` |
| GEM | `http://HOST:8000/retrieve` | `/retrieve` in msgpack |
| DSPy's ColBERTv2 | `http://HOST:8000/api/search` | `/api/search` |

The shapes match each project's released server. `contents` is as the corpus has it, or `"Title"\\ntext`, which all
clients split at the first newline; other fields of a row, such as `url`, stand beside it. These clients send whatever a
model wrote, and few of them check the status. So a blank query has no hits, what is too long or too many is brought
within the limits, and who comes while the server loads or is full waits.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import orjson
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from research.passages import contents_of
from research.schemas import ErrorBody, ServiceStatus
from services.retriever.api.answers import UnreadAnswers
from services.retriever.api.compat_search import Form, PatientSearch
from services.retriever.api.packed import PackedRoute, is_packed, packed_form
from services.retriever.api.pages import PageSource
from services.retriever.index.passage_lookup import Record
from services.retriever.types import HitDicts
from services.web.disconnect import CLIENT_CLOSED_REQUEST, cancel_on_disconnect
from services.web.errors import HttpError, ValidationRoute
from services.web.known_hosts import require_no_page

_TOP_N, _TOP_K = 10, 3  # the defaults of the servers of ReSearch and ColBERT, and of the others
_MOST_URLS = 100  # clients send one

# At the first that is no text, the others are not looked at.
Texts = Annotated[list[str], Field(fail_fast=True)]

_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (402, 409, 413, 422, 502, 503, 507)
}


class _Lenient(BaseModel):
    """These clients may send other fields, as many queries as a body holds, and any number of hits, which a model may
    have written: what is above or below the limits is brought within them.
    """

    most_values: ClassVar[int] = 100_000


class ReSearchQuery(_Lenient):
    """`/search` of ReSearch and ReCall."""

    query: str
    top_n: int = _TOP_N
    return_score: bool = False


class ReSearchQueries(_Lenient):
    """`/batch_search` of ReSearch and ReCall."""

    query: Texts
    top_n: int = _TOP_N
    return_score: bool = False


class Retrieve(_Lenient):
    """`/retrieve` of Search-R1 with `queries` and `topk`; SkyRL calls the first `query`: one query or a list.

    rLLM sends one `query` with `top_k` or `k`, and reads another answer.
    """

    queries: Texts | None = None
    query: str | Texts | None = None
    topk: int | None = None
    top_k: int | None = None
    k: int | None = None
    return_scores: bool = False


class R1Queries(_Lenient):
    """`/queries` of R1-Searcher."""

    queries: Texts
    k: int = _TOP_K


class Access(BaseModel):
    """`/access` of ASearcher and RLinf."""

    urls: Annotated[list[str], Field(max_length=_MOST_URLS, fail_fast=True)]


def compatible_routes(
    search: PatientSearch, pages: PageSource, unread: UnreadAnswers, health: Callable[[], Awaitable[ServiceStatus]]
) -> APIRouter:
    """The routes; all search the index of `corpus.index`."""
    router = APIRouter(tags=["compatible"], responses=_RESPONSES, route_class=ValidationRoute)

    @router.get("/health")
    async def is_healthy() -> dict[str, str]:
        """As the servers of ReSearch and rLLM: 200 if searches are answered."""
        status = await health()
        if status.status != "ready":
            raise HttpError(503, "not_ready", f"the retriever is {status.status}: {status.detail}")
        return {"status": "healthy"}

    @router.post("/compat/research/search")
    async def research_search(body: ReSearchQuery, request: Request) -> Response:
        """Answer one query with a list of documents, or with `[documents, scores]`."""
        plain = Form(_documents, b"", lambda scores: b"")
        scored = Form(_documents, b"[", lambda scores: b",%b]" % orjson.dumps(scores[0]))
        return await search.answer(request, [body.query], body.top_n or _TOP_N, scored if body.return_score else plain)

    @router.post("/compat/research/batch_search")
    async def research_batch_search(body: ReSearchQueries, request: Request) -> Response:
        """Answer several queries with one list of documents per query, or with `[documents, scores]`."""
        plain = Form(_documents, b"[", lambda scores: b"]")
        scored = Form(_documents, b"[[", lambda scores: b"],%b]" % orjson.dumps(scores))
        return await search.answer(request, body.query, body.top_n or _TOP_N, scored if body.return_score else plain)

    async def retrieve(body: Retrieve, request: Request) -> Response:
        """Answer one or several queries with one list of documents per query, each with its score if requested."""
        if (body.queries is None) == (body.query is None):
            raise HttpError(422, "invalid_request", "give either `queries` or `query`")
        if isinstance(body.query, str) and body.topk is None and (body.top_k or body.k):
            return await search.answer(request, [body.query], body.top_k or body.k, _rllm(body.query))
        queries = [body.query] if isinstance(body.query, str) else body.query or body.queries or []
        shape = _scored_documents if body.return_scores else _documents
        form = Form(shape, b'{"result":[', lambda scores: b"]}")
        if is_packed(request):
            form = packed_form(shape, len(queries) if body.query is None else None)
        return await search.answer(request, queries, body.topk or body.top_k or body.k or _TOP_K, form)

    router.add_api_route("/retrieve", retrieve, methods=["POST"], route_class_override=PackedRoute)

    @router.post("/access")
    async def access(body: Access, request: Request) -> Response:
        """Answer each url with its page as far as the corpus, or the web if that is searched, has it, or null."""
        found = await cancel_on_disconnect(request, pages.access(body.urls))
        if found is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return unread.respond(found, _page, lambda parts: {"result": parts})

    # Links are followed, and loaded ahead, without a person: over the web each costs a request.
    @router.get("/api/search", dependencies=[Depends(require_no_page)], responses={403: {"model": ErrorBody}})
    async def colbert(request: Request, query: str, k: int = _TOP_N) -> Response:
        """Answer one query as ColBERT's server, which DSPy asks."""
        head = b'{"query":%b,"topk":' % orjson.dumps(_utf8(query))
        return await search.answer(request, [query], k or _TOP_N, Form(_colbert, head, lambda scores: b"}"))

    @router.post("/queries")
    async def r1_searcher(body: R1Queries, request: Request) -> Response:
        """Answer several queries with one list of texts per query; the client strips the number before each text."""
        head = b'{"queries":%b,"answers":[' % orjson.dumps([_utf8(query) for query in body.queries])
        return await search.answer(request, body.queries, body.k or _TOP_K, Form(_numbered, head, lambda scores: b"]}"))

    return router


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _rllm(query: str) -> Form:
    """The answer to one query as rLLM's server gives it: its hits, not a list of lists.

    Of its two clients one reads `document`, the other `content`.
    """
    head = b'{"query":%b,"method":"dense","results":' % orjson.dumps(_utf8(query))
    return Form(_rllm_results, head, lambda scores: b',"num_results":%d}' % len(scores[0]))


def _rllm_results(hits: HitDicts) -> list[dict[str, Any]]:
    documents = _documents(hits)
    return [
        {"id": hit["id"], "content": document["contents"], "score": hit["score"], "document": document}
        for hit, document in zip(hits, documents, strict=True)
    ]


def _document(hit: Mapping[str, str | float]) -> dict[str, Any]:
    """The row of the corpus, `contents` as it was given."""
    more = orjson.loads(str(hit["fields"])) if "fields" in hit else {}
    return {"id": hit["id"], "contents": contents_of(str(hit["title"]), str(hit["text"])), **more}


def _documents(hits: HitDicts) -> list[dict[str, Any]]:
    return list(map(_document, hits))


def _page(passages: Sequence[Record]) -> dict[str, Any] | None:
    """The row of the corpus; if several make up the page, the first with the text of the others below its own."""
    if not passages:
        return None
    page = _document(passages[0])
    return {**page, "contents": "\n".join([page["contents"], *(passage["text"] for passage in passages[1:])])}


def _colbert(hits: HitDicts) -> list[dict[str, Any]]:
    """`Title | text`, as in the collections that DSPy's programs take apart there."""
    powers = [math.exp(float(hit["score"])) for hit in hits]
    return [
        {
            "text": " | ".join(str(part) for part in (hit["title"], hit["text"]) if part),
            "pid": hit["id"],
            "rank": rank,
            "score": hit["score"],
            "prob": power / sum(powers),
        }
        for rank, (hit, power) in enumerate(zip(hits, powers, strict=True), start=1)
    ]


def _scored_documents(hits: HitDicts) -> list[dict[str, Any]]:
    return [{"document": _document(hit), "score": hit["score"]} for hit in hits]


def _numbered(hits: HitDicts) -> list[str]:
    """As the lines of R1-Searcher's corpora, whose text the model was trained on; two spaces follow `Text:`."""
    return [f"{rank}\tTitle: {hit['title']} Text:  {hit['text']}" for rank, hit in enumerate(hits)]
