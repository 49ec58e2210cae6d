"""Runs an app under uvicorn until the process is stopped; `services.process.stopping` handles the signals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from services.process import stopping
from services.web.bounded_http import HttpBounds, bounded_protocol
from services.web.known_hosts import KnownHosts
from services.web.logs import LOGGING
from services.web.request_ids import RequestIds

# How long requests in flight may take after a signal; then the app closes what it has opened.
DRAIN_SECONDS = 5


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
    logs = {"log_level": "warning"} if quiet else {"log_config": LOGGING}
    return Server(
        uvicorn.Config(
            RequestIds(KnownHosts(app, names)),
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
