"""What is recorded of pages that are opened, and what is left to another time; with the internet of `page_sites`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response

from research.config import load_settings
from services.retriever.web.pages.fetch import MOST_AHEAD, Fetcher
from services.retriever.web.pages.opener import PageOpener
from services.retriever.web.pages.reading import reader as reader_module
from services.retriever.web.pages.reading import readers as readers_module
from services.retriever.web.pages.reading.reader import Page
from services.retriever.web.pages.refusals import PageError
from services.retriever.web.record import Record
from services.web.errors import HttpError
from tests.support.page_sites import PUBLIC, Internet, PageSite, html

SITE = "http://site.example"
HANGING = (
    "import services.retriever.web.pages.reading.text as text;"
    "text.title_and_text = lambda html: text.signal.pause(); text.main()"
)


class Opened:
    """An opener of a record in `folder`; how many pages it has counted, and how many lines it has recorded."""

    refused: Sequence[str] = ()

    def __init__(self, folder: Path, *private: str) -> None:
        self.counted = 0
        self.record = Record(folder / "record.jsonl", "searxng", "http://127.0.0.1:9", writable=True)
        self.path = self.record.path
        fetcher = Fetcher(
            self._charge,
            timeout=20.0,
            min_interval=0.0,
            contact="us@site.example",
            at_once=2,
            private_hosts=private,
            refused_networks=self.refused,
        )
        self.opener = PageOpener(self.record, fetcher, private_hosts=private, most_waiting=1000, max_wait=60.0)

    async def _charge(self) -> None:
        self.counted += 1

    @property
    def lines(self) -> int:
        return len(self.path.read_bytes().splitlines())

    async def status(self, path: str) -> int:
        try:
            await self.opener.open(SITE + path)
        except HttpError as error:
            return error.status
        return 200


def run(folder: Path, work: Callable[[Opened], Awaitable[Any]], *private: str) -> Any:
    async def all_of_it() -> Any:
        opened = Opened(folder, *private)
        try:
            return await work(opened)
        finally:
            await opened.opener.close()
            opened.record.close()

    return asyncio.run(all_of_it())


def test_what_our_settings_refuse_is_given_once_they_allow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite()
    with site.serving() as port:
        Internet({"site.example": [["10.0.0.7"]]}, {("10.0.0.7", 80): port}).install(monkeypatch)
        assert run(tmp_path, lambda opened: opened.status("/")) == 403
        assert site.asked == []
        assert run(tmp_path, lambda opened: opened.status("/"), "site.example") == 200


def test_where_a_page_leads_is_checked_anew_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = PageSite()
    with site.serving() as port:
        site.pages["/old"] = lambda: Response("", 302, {"Location": "http://other.example:8080/"})
        names = {"site.example": [[PUBLIC]], "other.example": [["10.0.0.7"]]}
        Internet(names, {(PUBLIC, 80): port, ("10.0.0.7", 8080): port}).install(monkeypatch)
        assert run(tmp_path, lambda opened: opened.status("/old")) == 403
        assert run(tmp_path, lambda opened: opened.status("/old"), "other.example:8080") == 200


def test_a_pause_is_no_outcome_and_fills_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite(pages={"/": lambda: Response("", 503, {"Retry-After": "60"}), "/b": html})
    with site.serving() as port:
        Internet({"site.example": [[PUBLIC]]}, {(PUBLIC, 80): port}).install(monkeypatch)

        async def ask(opened: Opened) -> None:
            assert await opened.status("/") == 502
            assert {await opened.status(path) for path in ("/", "/b") for _ in range(50)} == {502}
            assert opened.record.page(f"{SITE}/")["refusal"]["message"] == "its host answered 503"
            assert (opened.lines, opened.counted, site.asked) == (1, 1, ["/"])

        run(tmp_path, ask)


def test_what_robots_txt_forbids_fills_no_record_beyond_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PageSite(robots="User-agent: *\nDisallow: /").serving() as port:
        Internet({"site.example": [[PUBLIC]]}, {(PUBLIC, 80): port}).install(monkeypatch)

        async def ask(opened: Opened) -> None:
            assert {await opened.status(f"/?n={n}") for n in range(20)} == {403}
            assert opened.counted == opened.lines == 20

        run(tmp_path, ask)


@pytest.mark.parametrize("program", [("false",), ("/nowhere/python",)])
def test_nothing_is_asked_for_that_could_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: tuple[str, ...]
) -> None:
    monkeypatch.setattr(reader_module, "_COMMAND", program)
    site = PageSite()
    with site.serving() as port:
        Internet({"site.example": [[PUBLIC]]}, {(PUBLIC, 80): port}).install(monkeypatch)

        async def ask(opened: Opened) -> None:
            assert await opened.status("/") == 503
            assert (opened.counted, opened.lines, site.asked, site.robots_asked) == (0, 0, [], 0)

        run(tmp_path, ask)


def test_pages_wait_with_their_hosts_while_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_COMMAND", (reader_module._COMMAND[0], "-c", HANGING))
    monkeypatch.setattr(readers_module, "_SECONDS", 600.0)
    site = PageSite(pages={f"/{n}": lambda: html("x" * 1_000_000) for n in range(15)})
    with site.serving() as port:
        Internet({"site.example": [[PUBLIC]]}, {(PUBLIC, 80): port}).install(monkeypatch)

        async def ask(opened: Opened) -> None:
            opening = [asyncio.create_task(opened.status(f"/{n}")) for n in range(15)]
            async with asyncio.timeout(60):
                while opened.counted < 2 + MOST_AHEAD:  # noqa: ASYNC110 - what counts is no event
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)  # for what must not happen
            assert opened.counted == 2 + MOST_AHEAD
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)

        run(tmp_path, ask)


def test_a_fault_of_ours_over_a_page_is_told_and_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite()
    with site.serving() as port:
        Internet({"site.example": [[PUBLIC]]}, {(PUBLIC, 80): port}).install(monkeypatch)

        async def ask(opened: Opened) -> None:
            with monkeypatch.context() as patch:
                patch.setattr("services.retriever.web.pages.fetch.kind_and_charset", lambda _: 1 // 0)
                with pytest.raises(PageError, match="ZeroDivisionError") as caught:
                    await opened.opener.open(f"{SITE}/")
            assert (caught.value.status, caught.value.may_pass) == (502, True)
            assert await opened.status("/") == 200

        run(tmp_path, ask)


def test_what_is_counted_at_the_end_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite(delay=0.5)
    with site.serving() as port:
        Internet({"site.example": [[PUBLIC]]}, {(PUBLIC, 80): port}).install(monkeypatch)

        async def ask(opened: Opened) -> asyncio.Task[Page]:
            await opened.opener._readers.require()
            opening = asyncio.create_task(opened.opener.open(f"{SITE}/"))
            while not site.asked:  # noqa: ASYNC110 - the site is in another thread
                await asyncio.sleep(0.01)
            return opening

        run(tmp_path, ask)
        assert run(tmp_path, lambda opened: opened.status("/")) == 200
    assert site.asked == ["/"]


def test_a_neighbour_with_a_public_address_is_refused_by_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = PageSite()
    with site.serving() as port:
        internet = Internet({"site.example": [["2a02:8071:1234::7", PUBLIC]]}, {(PUBLIC, 80): port})
        internet.install(monkeypatch)
        for refused in (["2a02:8071:1234::/48", f"{PUBLIC}/32"], ["2a02:8071:1234::/48"]):
            settings = load_settings(overrides=[f"web.refused_networks={json.dumps(refused)}"], environment=False)
            with monkeypatch.context() as patch:
                patch.setattr(Opened, "refused", settings.web.refused_networks)
                status = run(tmp_path, lambda opened: opened.status("/"))
            assert status == (200 if len(refused) == 1 else 403)
    assert set(internet.connected) == {(PUBLIC, 80)}
