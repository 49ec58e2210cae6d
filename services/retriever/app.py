"""The retriever as a web application: its own search route and the routes to operate it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from research.schemas import RetrieverInfo, SearchRequest, SearchResponse
from services.retriever.api.admin import admin_routes
from services.retriever.api.answers import UnreadAnswers
from services.retriever.api.compat import compatible_routes
from services.retriever.api.compat_search import PatientSearch
from services.retriever.api.errors import ERROR_RESPONSES, as_http_error
from services.retriever.api.info import describe
from services.retriever.api.limits import require_within_limits
from services.retriever.api.load_shedding import Shedding
from services.retriever.api.mcp_tool import mcp_routes
from services.retriever.api.open import open_routes
from services.retriever.api.pages import Pages
from services.retriever.api.request_timer import RequestTimer
from services.retriever.retriever import Retriever
from services.retriever.serving import Serving
from services.retriever.types import QueryResult, served
from services.retriever.web_pages import WebPages
from services.retriever.web_retriever import WebRetriever
from services.web.auth import admin_guard
from services.web.body_limit import BodyLimit
from services.web.disconnect import CLIENT_CLOSED_REQUEST, cancel_on_disconnect
from services.web.errors import ValidationRoute, install_error_handlers
from services.web.health import health_routes
from services.web.server import NO_DOCS_PAGES
from services.web.telemetry.refusals import shared_metrics

# Bounds what is read into memory; a whole queue of queries of ordinary length takes a tenth of it.
MAX_BODY_BYTES = 4_000_000
# Where it is another: `/mcp` is one call of a tool, and the library that reads it copies it several times.
BODY_SIZES = {"/mcp": 1_000_000}
# Of all requests that are not answered yet.
MAX_HELD_BYTES = 256_000_000


def create_app(retriever: Retriever | WebRetriever) -> FastAPI:
    """The app around a retriever, which is loaded once the app runs."""
    unread = UnreadAnswers(retriever.settings.retriever.max_answer_bytes)
    pages = Pages(retriever, watch=retriever.reading) if isinstance(retriever, Retriever) else WebPages(retriever)
    mcp, mcp_sessions = mcp_routes(retriever, unread, pages, is_web=isinstance(retriever, WebRetriever))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(mcp_sessions())
            retriever.start()
            yield
        if isinstance(pages, Pages):
            pages.close()
        await retriever.close()

    app = FastAPI(
        title="Retriever",
        summary="Passages that answer a query.",
        lifespan=lifespan,
        **NO_DOCS_PAGES,
    )
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES, max_held=MAX_HELD_BYTES, of_paths=BODY_SIZES)
    app.add_middleware(
        Shedding,
        statuses={"/search": 429},
        is_full=lambda: retriever.is_full,
        retry_headers=retriever.retry_headers,
        count=retriever.metrics.count_rejected,
    )
    app.add_middleware(RequestTimer, observe=retriever.metrics.observe_request)
    install_error_handlers(
        app,
        as_http=as_http_error(retriever),
        # The response to a bug is sent outside the middleware that times the other requests.
        count_bug=lambda: retriever.metrics.observe_request("unknown", 500, 0.0),
    )
    app.include_router(search_routes(retriever, unread))
    app.include_router(open_routes(pages, unread))
    app.include_router(compatible_routes(PatientSearch(retriever, unread), pages, unread, retriever.health))
    if isinstance(retriever, Retriever) and (guard := admin_guard()):
        app.include_router(admin_routes(retriever), dependencies=guard)
    app.include_router(health_routes(retriever.health, lambda: retriever.stuck))
    app.include_router(observation_routes(retriever))
    app.router.routes.extend(mcp)
    return app


def search_routes(retriever: Serving[Any], unread: UnreadAnswers) -> APIRouter:
    """`POST /search`."""
    router = APIRouter(route_class=ValidationRoute)

    @router.post("/search", response_model=SearchResponse, responses=ERROR_RESPONSES)
    async def search(body: SearchRequest, request: Request) -> Response:
        """Find the passages nearest to one query or to each of several."""
        field, texts = ("queries", body.queries or []) if body.query is None else ("query", [body.query])
        require_within_limits(retriever.settings.retriever, field=field, texts=texts, top_k=("top_k", body.top_k))
        index = retriever.index(body.index)
        answers = await cancel_on_disconnect(request, retriever.search(index, texts, body.top_k))
        if answers is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return unread.respond(
            [answer.hits for answer in answers],
            lambda hits: list(map(served, hits)),
            lambda results: {
                "index": index.name,
                "revision": index.revision,
                "results": results,
                "seconds": _timings(answers),
            },
        )

    return router


def observation_routes(retriever: Retriever | WebRetriever) -> APIRouter:
    """`/info` and `/metrics`."""
    router = APIRouter()

    @router.get("/info")
    async def get_info() -> RetrieverInfo:
        """What is served, and the limits of a request."""
        return retriever.info() if isinstance(retriever, WebRetriever) else describe(retriever)

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(retriever.metrics.render() + shared_metrics(), media_type=CONTENT_TYPE_LATEST)

    return router


def _timings(answers: Sequence[QueryResult]) -> dict[str, float]:
    return {
        "queue": max(answer.queue_seconds for answer in answers),
        "encode": max(answer.encode_seconds for answer in answers),
        "search": max(answer.search_seconds for answer in answers),
    }
