"""Run the retriever until a signal stops it."""

from __future__ import annotations

import sys

from research.errors import ResearchError, ServiceError
from research.settings import Settings
from services.process import stopping
from services.retriever.app import create_app
from services.retriever.retriever import Retriever
from services.retriever.web_retriever import WebRetriever
from services.web.known_hosts import own_names
from services.web.ports import require_free_port
from services.web.server import new_server, serve_until_stopped

# The encoder's thread requests the GIL after every call, some hundred times per second. With Python's default of 5 ms
# it would wait that long whenever requests come in.
_SWITCH_SECONDS = 1e-4
_KEPT_OF_AN_INDEX = "the retriever keeps nothing but its index, which is unchanged"
_KEPT_OF_THE_WEB = "every answer of the web and every request sent is on the disk"


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are answered first.

    Raises:
        AssetError, ConfigurationError: index and encoder do not match, a key is missing, or the port is taken.
        ServiceError: what is to be served could not be loaded; the server has been shut down.
    """

    def stop() -> None:
        server.should_exit = True

    require_free_port(settings.retriever.host, settings.retriever.port, "retriever.port")
    sys.setswitchinterval(_SWITCH_SECONDS)
    searches_index = settings.retriever.backend == "index"
    retriever: Retriever | WebRetriever = (
        Retriever(settings, on_failure=stop) if searches_index else WebRetriever(settings, on_failure=stop)
    )
    host, port = settings.retriever.host, settings.retriever.port
    server = new_server(create_app(retriever), host, port, names=own_names(settings))
    with stopping.keeping(lambda: _KEPT_OF_AN_INDEX if searches_index else _KEPT_OF_THE_WEB):
        serve_until_stopped(server)
    failure = retriever.failure
    if isinstance(failure, ResearchError):
        raise failure
    if failure is not None:
        what = (
            f"the encoder {settings.encoder.name}" if searches_index else f"the record of {settings.retriever.backend}"
        )
        raise ServiceError(f"{what} could not be loaded: {failure!r}") from failure
