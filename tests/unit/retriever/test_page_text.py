"""What is read of a page, and that a page which cannot be read costs no more than itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.retriever.web.pages.fetch import Fetched
from services.retriever.web.pages.reading import reader as reader_module
from services.retriever.web.pages.reading.reader import Page, Reader
from services.retriever.web.pages.reading.text import decoded, title_and_text
from services.retriever.web.pages.refusals import PageError
from tests.support.page_sites import ARTICLE, PARAGRAPHS

URL = "http://site.example/"


def run(work: Callable[[Reader], Awaitable[Any]], seconds: float = 60.0) -> Any:
    async def all_of_it() -> Any:
        reader = Reader(seconds)
        try:
            return await work(reader)
        finally:
            reader.close()

    return asyncio.run(all_of_it())


def page(body: str | bytes, *, is_html: bool = True, charset: str = "utf-8") -> Fetched:
    return Fetched(URL, is_html, charset, body.encode() if isinstance(body, str) else body)


def test_the_main_text_is_given_and_not_what_stands_around_it() -> None:
    title, text = title_and_text(ARTICLE)
    assert title == "The Starry Night"
    assert text.splitlines() == ["The Starry Night", *PARAGRAPHS]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<html><body><p>Hi <b>you</b></p></body></html>", "Hi you"),
        ("<html><body><script>x()</script></body></html>", ""),
        ("", ""),
        ("no tag at all", ""),
        ("<div>" * 3000 + "deep" + "</div>" * 3000, None),
    ],
)
def test_odd_pages_have_what_text_they_have(html: str, text: str | None) -> None:
    found = title_and_text(html)[1].strip()
    assert text is None or found == text


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        ("é".encode(), "utf-8", "é"),
        ("é".encode(), "", "é"),
        (b"\xef\xbb\xbf\xc3\xa9", "iso-8859-1", "é"),
        (b"\xe9\x80", "ISO-8859-1", "é€"),
        (b"<meta charset=windows-1251>\xcf\xf0\xe8", "", "<meta charset=windows-1251>При"),
        (b'<META http-equiv=x content="text/html; charset=Shift_JIS">\x83e', "", None),
        ("日本".encode("iso-2022-jp"), "iso-2022-jp", "日本"),
        (b"\xc3\xa9", "no-such-coding", "é"),
        (b"\xc3\xa9", "hex", "é"),
        (b"\xc3\xa9", "rot13", "é"),
        (b"ok \xff\xfe\xfd", "utf-8", None),
    ],
)
def test_bytes_are_read_in_the_encoding_that_is_said(body: bytes, charset: str, text: str | None) -> None:
    found = decoded(body, charset)
    assert text is None or found == text


def test_pages_are_read_one_after_the_other_by_one_process() -> None:
    async def three(reader: Reader) -> list[Page]:
        plain = page("  a\n\nb\x00\n", is_html=False)
        pages = await asyncio.gather(reader.read(page(ARTICLE)), reader.read(plain), reader.read(page(ARTICLE)))
        assert reader._process is not None
        first = reader._process.pid
        await reader.read(plain)
        assert reader._process.pid == first
        return pages

    first, plain, again = run(three)
    assert first == again == Page(URL, "The Starry Night", "\n".join(["The Starry Night", *PARAGRAPHS]))
    assert plain == Page(URL, "", "a\n\nb")


def test_a_page_without_text_is_told() -> None:
    async def read(reader: Reader) -> None:
        with pytest.raises(PageError, match="a script may write it") as caught:
            await reader.read(page("<html><body><script>write()</script></body></html>"))
        assert (caught.value.status, caught.value.error) == (415, "page_unreadable")

    run(read)


def test_a_page_that_ends_the_reader_costs_itself_alone() -> None:
    async def read(reader: Reader) -> None:
        await reader.read(page(ARTICLE))
        assert reader._process is not None
        os.kill(reader._process.pid, signal.SIGSEGV)
        with pytest.raises(PageError, match="it cannot be read"):
            await reader.read(page(ARTICLE))
        assert (await reader.read(page(ARTICLE))).title == "The Starry Night"

    run(read)


def test_a_page_that_takes_all_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # As `text` does, with less of it: a page of the most bytes would have to be found that needs so much.
    program = (
        "import services.retriever.web.pages.reading.text as text; text._MOST_MEMORY = 2**29;"
        "text.title_and_text = lambda html: ('', 'x' * 2**30); text.main()"
    )
    monkeypatch.setattr(reader_module, "_COMMAND", (*reader_module._COMMAND[:1], "-c", program))

    async def read(reader: Reader) -> None:
        with pytest.raises(PageError, match="MemoryError"):
            await reader.read(page(ARTICLE))
        assert (await reader.read(page("words", is_html=False))).text == "words"

    run(read)


def test_a_page_that_hangs_the_reader_costs_itself_alone() -> None:
    async def read(reader: Reader) -> None:
        await reader.read(page(ARTICLE))
        assert reader._process is not None
        stopped = reader._process
        os.kill(stopped.pid, signal.SIGSTOP)
        reader._seconds = 0.2
        with pytest.raises(PageError, match=r"not found within 0\.2 s") as caught:
            await reader.read(page(ARTICLE))
        assert caught.value.status == 415
        assert stopped.returncode == -signal.SIGKILL
        reader._seconds = 60.0
        assert (await reader.read(page(ARTICLE))).title == "The Starry Night"

    run(read)


def test_the_loop_goes_on_while_a_page_is_read() -> None:
    async def read(reader: Reader) -> None:
        await reader.read(page(ARTICLE))
        assert reader._process is not None
        os.kill(reader._process.pid, signal.SIGSTOP)
        reading = asyncio.create_task(reader.read(page("x" * 4_000_000, is_html=False)))
        begun = time.monotonic()
        await asyncio.sleep(0.05)
        assert time.monotonic() - begun < 5
        assert not reading.done()
        os.kill(reader._process.pid, signal.SIGCONT)
        await reading

    run(read)


def test_the_process_ends_with_the_reader_and_when_nobody_reads() -> None:
    processes: list[subprocess.Popen[bytes]] = []

    async def read(reader: Reader) -> None:
        await reader.read(page(ARTICLE))
        assert reader._process is not None
        processes.append(reader._process)

    run(read)
    assert processes[0].returncode is not None
