"""The retriever as a web application: its own search route and how it is operated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from research.schemas import SearchRequest, SearchResponse, ServiceStatus
from research.settings import Settings
from services.retriever.api.admin import attach_admin_routes
from services.retriever.api.compat import COMPATIBLE_ROUTES, attach_compatible_routes
from services.retriever.api.errors import ERROR_RESPONSES, install_error_handlers
from services.retriever.api.info import RetrieverInfo, describe
from services.retriever.api.limits import json_response, require_within_limits
from services.retriever.api.load_shedding import Shedding
from services.retriever.api.mcp_tool import attach_mcp
from services.retriever.api.request_timer import RequestTimer
from services.retriever.retriever import Retriever
from services.retriever.types import QueryResult
from services.web.body_limit import BodyLimit
from services.web.disconnect import CLIENT_CLOSED_REQUEST, cancel_on_disconnect

# Bounds what is read into memory; a whole queue of queries of ordinary length takes a tenth of it.
MAX_BODY_BYTES = 4_000_000


def create_app(settings: Settings, on_failure: Callable[[], None] = lambda: None) -> FastAPI:
    """Check indexes and encoder against each other and make the app; the encoder is loaded once the app runs.

    Args:
        settings: the whole tree; `encoder`, `corpus`, `paths` and `retriever` matter here.
        on_failure: called if loading fails; the reason is then `app.state.retriever.failure`.

    Raises:
        AssetError, ConfigurationError: indexes and encoder are missing, broken, or do not fit each other.
    """
    retriever = Retriever(settings, on_failure)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(mcp_sessions())
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
    app.add_middleware(
        Shedding,
        statuses={"/search": 429, **dict.fromkeys(COMPATIBLE_ROUTES, 503)},
        is_full=lambda: retriever.is_full,
        retry_headers=retriever.retry_headers,
        count=retriever.metrics.count_rejected,
    )
    app.add_middleware(RequestTimer, observe=retriever.metrics.observe_request)
    install_error_handlers(app, retriever)
    _add_search(app, retriever)
    attach_compatible_routes(app, retriever)
    attach_admin_routes(app, retriever)
    _add_operations(app, retriever)
    mcp_sessions = attach_mcp(app, retriever)
    return app


def _add_search(app: FastAPI, retriever: Retriever) -> None:
    @app.post("/search", response_model=SearchResponse, responses=ERROR_RESPONSES)
    async def search(body: SearchRequest, request: Request) -> Response:
        """Find the passages nearest to one query or to each of several."""
        field, texts = ("queries", body.queries or []) if body.query is None else ("query", [body.query])
        require_within_limits(retriever.settings.retriever, field=field, texts=texts, top_k=("top_k", body.top_k))
        index = retriever.index(body.index)
        answers = await cancel_on_disconnect(request, retriever.search(index, texts, body.top_k))
        if answers is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return json_response(
            {
                "index": index.name,
                "revision": index.manifest.revision,
                "results": [answer.hits for answer in answers],
                "seconds": _timings(answers),
            }
        )


def _add_operations(app: FastAPI, retriever: Retriever) -> None:
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
        return describe(retriever)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(retriever.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _timings(answers: Sequence[QueryResult]) -> dict[str, float]:
    return {
        "queue": max(answer.queue_seconds for answer in answers),
        "encode": max(answer.encode_seconds for answer in answers),
        "search": max(answer.search_seconds for answer in answers),
    }
