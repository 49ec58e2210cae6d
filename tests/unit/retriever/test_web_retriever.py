"""The beginning and the end of a retriever that searches the web."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from services.retriever.web.pages.opener import PageOpener
from services.retriever.web.search import WebSearch
from services.retriever.web_retriever import WebRetriever
from tests.support.page_sites import PageSite
from tests.support.web_search import web_retriever

ENGINE = "http://127.0.0.1:9"  # which is not asked here


async def loaded(retriever: WebRetriever) -> WebRetriever:
    retriever.start()
    assert retriever._loading is not None
    await retriever._loading
    return retriever


def test_searches_and_pages_end_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other they could take longer than whoever stops the service waits."""

    async def work() -> None:
        retriever = await loaded(web_retriever(tmp_path, "searxng", ENGINE))
        meeting = asyncio.Barrier(2)
        for owner in (PageOpener, WebSearch):

            async def meet(it: Any, close: Any = owner.close) -> None:
                async with asyncio.timeout(30):
                    await meeting.wait()
                await close(it)

            monkeypatch.setattr(owner, "close", meet)
        await retriever.close()

    asyncio.run(work())


def test_a_page_is_recorded_at_the_end_though_no_search_is_under_way(tmp_path: Path) -> None:
    site = PageSite(delay=0.5)
    with site.serving() as port:
        private = f'web.private_hosts=["127.0.0.1:{port}"]'

        async def work() -> None:
            retriever = await loaded(web_retriever(tmp_path, "searxng", ENGINE, private))
            opening = asyncio.create_task(retriever.open(f"http://127.0.0.1:{port}/"))
            while not site.asked:  # noqa: ASYNC110 - the site is in another thread
                await asyncio.sleep(0.01)
            await retriever.close()
            await opening

        asyncio.run(work())
    [line] = (tmp_path / "web" / "searxng.jsonl").read_text().splitlines()
    assert json.loads(line)["entry"]["page"]["title"] == "The Starry Night"


def test_a_retriever_that_cannot_open_pages_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("services.retriever.web_retriever.Fetcher", fail)
    failed: list[bool] = []

    async def work() -> None:
        settings = web_retriever(tmp_path, "searxng", ENGINE).settings
        retriever = await loaded(WebRetriever(settings, on_failure=lambda: failed.append(True)))
        assert (await retriever.health()).status == "failed"
        assert isinstance(retriever.failure, OSError)
        await retriever.close()

    asyncio.run(work())
    assert failed == [True]
