"""Runs an app under uvicorn until the process is stopped; `services.process.stopping` handles the signals."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.process import stopping
from services.web.bounded_http import HttpBounds, bounded_protocol
from services.web.errors import error_response
from services.web.known_hosts import KnownHosts
from services.web.plain_paths import PlainPaths
from services.web.telemetry.log_limit import limit_warnings_of_strangers
from services.web.telemetry.logs import LOGGING
from services.web.telemetry.request_ids import RequestIds

# How long requests in flight may take after a signal; then the app closes what it has opened. With that it is less than
# the launcher waits before it kills (`services.system.launcher`).
DRAIN_SECONDS = 4
_RETRY_SECONDS = 5

# FastAPI's pages load scripts from another host into the service's origin. What they show is at `/openapi.json`.
NO_DOCS_PAGES: dict[str, Any] = {"docs_url": None, "redoc_url": None}


class ToldOfTheStop:
    """ASGI layer: a request that is cut off by the end of the service gets 503, not uvicorn's plain 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if scope["type"] != "http" or begun:
                raise
            told = "the service is ending; ask again once it is back"
            await error_response(503, "stopping", told, {"Retry-After": str(_RETRY_SECONDS)})(scope, receive, send)


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: those would answer a SIGINT that the parent ignored with code 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def new_server(
    app: FastAPI,
    host: str,
    port: int,
    *,
    names: Iterable[str] = ("localhost",),
    bounds: HttpBounds = HttpBounds(),  # noqa: B008
    quiet: bool = False,
) -> Server:
    """A server that logs one JSON line per event; with `quiet`, only warnings, in uvicorn's format.

    `names`: under which clients may call it, besides addresses (`services.web.known_hosts.own_names`).
    """
    limit_warnings_of_strangers()
    logs = {"log_level": "warning"} if quiet else {"log_config": LOGGING}
    return Server(
        uvicorn.Config(
            RequestIds(KnownHosts(PlainPaths(ToldOfTheStop(app)), names)),
            host=host,
            port=port,
            http=bounded_protocol(bounds),
            ws="none",
            # No line per request: /metrics counts them, and a line would cost more than some searches.
            access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            **logs,
        )
    )


def serve_until_stopped(server: Server) -> None:
    """Serve until the app ends it; after a signal, raise Stopped once everything is closed."""

    def stop() -> None:
        server.should_exit = True

    with stopping.interrupting(stop):
        server.run()
    stopping.raise_if_stopping()
