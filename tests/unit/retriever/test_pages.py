"""Requests for pages wait for their turn and for the retriever to load, and every wait ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from research.passages import CorpusRow
from research.schemas import ServiceStatus
from services.retriever.api import pages as pages_module
from services.retriever.api.answers import UnreadAnswers
from services.retriever.api.compat import compatible_routes
from services.retriever.api.pages import Pages
from services.retriever.index.passage_lookup import PassageLookup
from services.retriever.index.passage_store import PassageStore, write_passage_store
from services.retriever.serving import NotReadyError
from services.web.errors import HttpError


class HeldLookup(PassageLookup):
    """The real one, which can be held still."""

    def __init__(self, store: PassageStore) -> None:
        super().__init__(store)
        self.go, self.entered = threading.Event(), threading.Event()
        self.go.set()

    def with_url(self, url: str) -> list[dict[str, str]]:
        self.entered.set()
        assert self.go.wait(timeout=10)
        return super().with_url(url)


Scenario = Callable[[Pages, SimpleNamespace, HeldLookup], Awaitable[None]]


URLS = tuple(f"u{number}" for number in range(5))


def run(
    directory: Path, scenario: Scenario, *, patience: float = 20, most_bytes: int = 100, urls: Sequence[str] = URLS
) -> None:
    rows = [CorpusRow(str(n), "T", "x" * 40, f'{{"url":"{url}"}}') for n, url in enumerate(urls)]
    write_passage_store(directory, rows)
    lookup = HeldLookup(PassageStore(directory))
    retriever = SimpleNamespace(
        settings=SimpleNamespace(retriever=SimpleNamespace(max_answer_bytes=most_bytes)),
        status=ServiceStatus(status="ready"),
        retry_headers=lambda: {"Retry-After": "1"},
    )

    def index(name: str | None) -> Any:
        if retriever.status.status != "ready":
            raise NotReadyError(retriever.status.detail)
        return SimpleNamespace(lookup=lookup)

    retriever.index = index
    asyncio.run(scenario(Pages(retriever, patience), retriever, lookup))  # type: ignore[arg-type,arg-type]


def test_a_request_waits_while_the_retriever_loads(tmp_path: Path) -> None:
    async def scenario(pages: Pages, retriever: SimpleNamespace, lookup: HeldLookup) -> None:
        retriever.status = ServiceStatus(status="loading", detail="the index")
        asked = asyncio.create_task(pages.with_urls(["u1"]))
        done, _ = await asyncio.wait([asked], timeout=0.1)
        assert not done
        retriever.status = ServiceStatus(status="ready")
        [[passage]] = await asked
        assert passage["id"] == "1"

    run(tmp_path, scenario)


@pytest.mark.parametrize("state", ["loading", "busy"])
def test_the_wait_ends(tmp_path: Path, state: str) -> None:
    async def scenario(pages: Pages, retriever: SimpleNamespace, lookup: HeldLookup) -> None:
        if state == "loading":
            retriever.status = ServiceStatus(status="loading", detail="the index")
        lookup.go.clear()
        with pytest.raises(HttpError) as refused:
            await pages.with_urls(["u1"])
        lookup.go.set()
        assert (refused.value.status, "Retry-After" in (refused.value.headers or {})) == (503, True)
        assert ("the index" if state == "loading" else "no page") in str(refused.value)
        if state == "busy":
            # What has waited in vain leaves its place. The next may come later than that on a busy machine.
            pages._patience = 20
            assert await pages.with_id("2") is not None

    run(tmp_path, scenario, patience=0.2)


def test_what_fails_is_told_at_once(tmp_path: Path) -> None:
    async def scenario(pages: Pages, retriever: SimpleNamespace, lookup: HeldLookup) -> None:
        retriever.status = ServiceStatus(status="failed", detail="the index is spoilt")
        with pytest.raises(NotReadyError, match="spoilt"):
            await pages.with_id("1")

    run(tmp_path, scenario)


def test_requests_take_turns_and_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "MOST_WAITING", 3)

    async def scenario(pages: Pages, retriever: SimpleNamespace, lookup: HeldLookup) -> None:
        lookup.go.clear()
        asked = [asyncio.create_task(pages.with_urls([f"u{number}"])) for number in range(3)]
        assert await asyncio.to_thread(lookup.entered.wait, 10)
        with pytest.raises(HttpError, match="are waiting"):
            await pages.with_urls(["u4"])
        lookup.go.set()
        assert [page[0]["id"] for [page] in await asyncio.gather(*asked)] == ["0", "1", "2"]
        assert len(await pages.with_urls(["u4"])) == 1

    run(tmp_path, scenario)


def test_pages_that_are_too_large_together_are_refused_before_all_are_read(tmp_path: Path) -> None:
    async def scenario(pages: Pages, retriever: SimpleNamespace, lookup: HeldLookup) -> None:
        assert len(await pages.with_urls(["u1", "u2", "nowhere"])) == 3
        with pytest.raises(HttpError, match="larger than 100 bytes") as refused:
            await pages.with_urls(["u1", "u2", "u3"])
        assert refused.value.status == 422

    run(tmp_path, scenario)


def test_a_page_is_found_by_its_url_as_given_and_else_as_wikis_write_it(tmp_path: Path) -> None:
    async def scenario(pages: Pages, retriever: SimpleNamespace, lookup: HeldLookup) -> None:
        app = FastAPI()
        app.include_router(compatible_routes(None, pages, UnreadAnswers(1000), None))  # type: ignore[arg-type]
        asked = ["w/index.php/A", "w/index.php/B", "w/index.php/C"]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://it") as client:
            result = (await client.post("/access", json={"urls": asked})).json()["result"]
        assert [page and page["url"] for page in result] == ["w/index.php/A", "w/index.php?title=B", None]

    run(tmp_path, scenario, most_bytes=1000, urls=["w/index.php/A", "w/index.php?title=B"])


def test_the_thread_ends_with_the_service(tmp_path: Path) -> None:
    async def scenario(pages: Pages, retriever: SimpleNamespace, lookup: HeldLookup) -> None:
        before = set(threading.enumerate())
        await pages.with_urls(["u1"])
        [thread] = set(threading.enumerate()) - before
        pages.close()
        thread.join(timeout=20)
        assert not thread.is_alive()

    run(tmp_path, scenario)
