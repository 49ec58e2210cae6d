"""The real retriever in front of a search engine of `tests.support.search_engines`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx

from research.config import load_settings
from services.retriever.app import create_app
from services.retriever.web_retriever import WebRetriever
from tests.support.search_engines import SearchEngine
from tests.support.web_server import serving

_QUICK = ("web.min_interval=0", "web.contact=team@site.example")


def web_retriever(data: Path, name: str, address: str, *overrides: str) -> WebRetriever:
    """A retriever with the built-in settings but for the engine, and no pause between requests."""
    settings = load_settings(
        overrides=[f"paths.data={data}", f"retriever.backend={name}", f"web.address={address}", *_QUICK, *overrides],
        environment=False,
    )
    return WebRetriever(settings, on_failure=lambda: None)


@contextmanager
def searching(data: Path, engine: SearchEngine | str, *overrides: str) -> Iterator[httpx.Client]:
    """A client of the app in front of an engine, which is served meanwhile; or of Tavily's form at an address."""
    name = engine.name if isinstance(engine, SearchEngine) else "tavily"
    with engine.serving() if isinstance(engine, SearchEngine) else nullcontext(engine) as address:
        app = create_app(web_retriever(data, name, address, *overrides))
        with serving(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while client.get("/readyz").json()["status"] == "loading":
                pass
            yield client


def found(client: httpx.Client, query: str, top_k: int = 3) -> list[dict[str, Any]]:
    """The hits of a query that is answered."""
    response = client.post("/search", json={"query": query, "top_k": top_k})
    assert response.status_code == 200, response.text
    hits: list[dict[str, Any]] = response.json()["results"][0]
    return hits
