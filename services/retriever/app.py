"""The routes of the retriever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from research.config import RetrieverService, Settings
from research.schemas import SearchRequest, SearchResponse, ServiceStatus
from services.retriever.batching import Answer, Query
from services.retriever.http_errors import ERROR_RESPONSES, InvalidFieldError, install_error_handlers
from services.retriever.info import RetrieverInfo, describe
from services.retriever.middleware import RequestCount
from services.retriever.service import Retriever
from services.web.body_limit import BodyLimit

# Bounds what is read into memory; 512 queries of ordinary length take a tenth of it.
MAX_BODY_BYTES = 1_000_000

_CLIENT_CLOSED_REQUEST = 499

T = TypeVar("T")


def create_app(settings: Settings, on_failure: Callable[[], None] = lambda: None) -> FastAPI:
    """Check index and encoder against each other and make the app; the encoder is loaded once the app runs.

    Args:
        settings: the whole tree; `encoder`, `corpus`, `paths` and `retriever` matter here.
        on_failure: called if loading fails; the reason is then `app.state.retriever.failure`.

    Raises:
        AssetError, ConfigurationError: index and encoder are missing, broken, or do not fit each other.
    """
    retriever = Retriever(settings, on_failure)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        retriever.start()
        yield
        await retriever.close()

    app = FastAPI(
        title="Retriever",
        summary="Passages nearest in meaning to a query.",
        lifespan=lifespan,
    )
    app.state.retriever = retriever
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(RequestCount, count=retriever.metrics.count_request)
    install_error_handlers(app, retriever)
    _add_search(app, retriever)
    _add_operations(app, retriever)
    return app


def _add_search(app: FastAPI, retriever: Retriever) -> None:
    manifest = retriever.index.manifest
    names = {"index": retriever.settings.corpus.index, "revision": manifest.recipe.revision}
    limits = retriever.settings.retriever

    @app.post("/search", response_model=SearchResponse, responses=ERROR_RESPONSES)
    async def search(body: SearchRequest, request: Request) -> Response:
        """Find the passages nearest to one query or to each of several."""
        queries = _within_limits(body, limits)
        answers = await _unless_disconnected(request, retriever.search(queries))
        if answers is None:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        return _json({**names, "results": [answer.hits for answer in answers], "seconds": _timings(answers)})


def _add_operations(app: FastAPI, retriever: Retriever) -> None:
    info = describe(retriever)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "alive"}

    @app.get("/readyz", response_model=ServiceStatus, responses={503: {"model": ServiceStatus}})
    async def readyz(response: Response) -> ServiceStatus:
        """Whether searches are answered, or else what is still going on."""
        response.status_code = 200 if retriever.status.status == "ready" else 503
        return retriever.status

    @app.get("/info")
    async def get_info() -> RetrieverInfo:
        """What is searched, with which encoder, within which limits."""
        return info

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(retriever.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _within_limits(body: SearchRequest, limits: RetrieverService) -> list[Query]:
    if body.top_k > limits.max_top_k:
        raise InvalidFieldError(f"top_k: {body.top_k} is above the limit of {limits.max_top_k}")
    field, texts = ("queries", body.queries) if body.query is None else ("query", [body.query])
    assert texts is not None, "SearchRequest holds one of the two"
    if len(texts) > limits.max_queue:
        raise InvalidFieldError(f"queries: {len(texts)} is above the limit of {limits.max_queue}")
    if (longest := max(map(len, texts))) > limits.max_query_chars:
        raise InvalidFieldError(f"{field}: {longest} characters are above the limit of {limits.max_query_chars}")
    return [Query(text, body.top_k) for text in texts]


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None after cancelling it because the client hung up."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timings(answers: Sequence[Answer]) -> dict[str, float]:
    return {
        "queue": max(answer.queue_seconds for answer in answers),
        "encode": max(answer.encode_seconds for answer in answers),
        "search": max(answer.search_seconds for answer in answers),
    }


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
