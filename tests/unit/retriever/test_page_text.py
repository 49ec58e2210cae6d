"""What is read of a page, and that a page which cannot be read costs no more than itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import pytest

from services.retriever.web.pages.fetch import Fetched
from services.retriever.web.pages.reading import reader as reader_module
from services.retriever.web.pages.reading import readers as readers_module
from services.retriever.web.pages.reading.reader import Page, Reader
from services.retriever.web.pages.reading.readers import Readers
from services.retriever.web.pages.reading.text import decoded, title_and_text
from services.retriever.web.pages.refusals import PageError
from services.web.errors import HttpError
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


def command(patch: pytest.MonkeyPatch, change: str) -> None:
    """Have pages read by `text` after a change of it."""
    program = f"import services.retriever.web.pages.reading.text as text; {change}; text.main()"
    patch.setattr(reader_module, "_COMMAND", (reader_module._COMMAND[0], "-c", program))


def pid_of(reader: Reader) -> int:
    assert reader._process is not None
    return reader._process.pid


def killed(pid: int) -> None:
    """Kill a process of ours, and wait until it has ended."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


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
        (b"Mnchen-3ya", "punycode", "Mnchen-3ya"),
        (b"+AOk-", "utf-7", "+AOk-"),
        (b"\\xe9", "unicode_escape", "\\xe9"),
        (b"ok \xff\xfe\xfd", "utf-8", None),
    ],
)
def test_bytes_are_read_in_the_encoding_that_is_said(body: bytes, charset: str, text: str | None) -> None:
    found = decoded(body, charset)
    assert text is None or found == text


def test_pages_are_read_by_one_process_until_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_MOST_PAGES", 3)

    async def four(reader: Reader) -> None:
        pids = []
        for _ in range(2):
            assert await reader.read(page(ARTICLE)) == Page(
                URL, "The Starry Night", "\n".join(["The Starry Night", *PARAGRAPHS])
            )
            pids.append(pid_of(reader))
            assert await reader.read(page("  a\n\nb\x00\n", is_html=False)) == Page(URL, "", "a\n\nb")
            pids.append(pid_of(reader))
        assert pids[0] == pids[1] == pids[2] != pids[3]

    run(four)


def test_a_page_without_text_is_told() -> None:
    async def read(reader: Reader) -> None:
        with pytest.raises(PageError, match="a script may write it") as caught:
            await reader.read(page("<html><body><script>write()</script></body></html>"))
        assert (caught.value.status, caught.value.error) == (415, "page_unreadable")

    run(read)


def test_a_page_that_ends_the_reader_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    command(
        monkeypatch,
        "text.title_and_text = lambda html: ('', html) if 'z' not in html else text.signal.raise_signal(11)",
    )

    async def read(reader: Reader) -> None:
        await reader.read(page("<p>a"))
        with pytest.raises(PageError, match="has ended") as caught:
            await reader.read(page("<p>z"))
        assert caught.value.may_pass  # something else may have ended it
        assert (await reader.read(page("<p>a"))).text == "<p>a"

    run(read)


def test_a_reader_that_ended_between_two_pages_costs_none() -> None:
    async def read(reader: Reader) -> None:
        await reader.read(page(ARTICLE))
        killed(pid_of(reader))
        assert (await reader.read(page(ARTICLE))).title == "The Starry Night"

    run(read)


@pytest.mark.parametrize(
    "found",
    [
        "('', 'x' * 2**30)",
        "('', bytes(2**28) and '')",  # trafilatura has given up over an error that it keeps to itself
        "('', str(bytes(2**28)[0] / 0))",  # libxml2 tells it as an error of its own
    ],
)
def test_a_page_that_takes_all_memory_is_not_at_fault_for_good(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    # As `text` does, with less of it: a page of the most bytes would have to be found that needs so much.
    command(monkeypatch, f"text._MOST_MEMORY = 2**29; text.title_and_text = lambda html: {found}")

    async def read(reader: Reader) -> None:
        await reader.read(page("words", is_html=False))
        first = pid_of(reader)
        with pytest.raises(PageError, match="no memory") as caught:
            await reader.read(page(ARTICLE))
        assert caught.value.may_pass
        assert (await reader.read(page("words", is_html=False))).text == "words"
        assert pid_of(reader) != first

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
        assert caught.value.may_pass
        assert stopped.returncode == -signal.SIGKILL
        reader._seconds = 60.0
        assert (await reader.read(page(ARTICLE))).title == "The Starry Night"

    run(read)


def test_a_page_that_hangs_a_reader_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "text.title_and_text = lambda html: ('', html) if 'hang' not in html else text.signal.pause()")

    async def read() -> None:
        readers = Readers()
        try:
            await readers.require()
            hanging = asyncio.create_task(readers.read(page("<p>hang")))
            await asyncio.sleep(0)  # so that it comes first
            async with asyncio.timeout(60):
                assert (await readers.read(page("<p>a"))).text == "<p>a"
                assert (await readers.read(page("<p>b"))).text == "<p>b"
            assert not hanging.done()
            hanging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hanging
        finally:
            readers.close()

    monkeypatch.setattr(readers_module, "_SECONDS", 600.0)
    asyncio.run(read())


def test_pages_are_read_while_one_reader_stands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def read() -> None:
        readers = Readers()
        try:
            await readers.require()
            monkeypatch.setattr(reader_module, "_COMMAND", ("false",))  # as when there is no memory for another
            found = await asyncio.gather(*(readers.read(page(ARTICLE)) for _ in range(2)))
            found += [await readers.read(page(ARTICLE)) for _ in range(3)]
            assert [each.title for each in found] == ["The Starry Night"] * 5
            assert caplog.text.count("before it could read any") == 1  # none is started while one is idle
        finally:
            readers.close()

    asyncio.run(read())


@pytest.mark.parametrize("program", [("false",), ("/nowhere/python",)])
def test_a_reader_that_does_not_start_is_no_fault_of_a_page(
    monkeypatch: pytest.MonkeyPatch, program: tuple[str, ...]
) -> None:
    monkeypatch.setattr(reader_module, "_COMMAND", program)

    async def read(reader: Reader) -> None:
        with pytest.raises(HttpError, match="pages cannot be read") as caught:
            await reader.read(page(ARTICLE))
        assert (caught.value.status, caught.value.error) == (503, "reader_failed")
        assert not isinstance(caught.value, PageError)
        assert not reader.stands

    run(read)


def test_a_reader_that_is_given_up_while_it_starts_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(subprocess.Popen[bytes]):
        def __init__(self, *_: Any, **others: Any) -> None:
            started.set()
            assert go_on.wait(30)
            super().__init__(("sleep", "600"), **others)

    monkeypatch.setattr(subprocess, "Popen", Slow)

    async def read(reader: Reader) -> None:
        starting = asyncio.create_task(reader.start())
        await asyncio.to_thread(started.wait, 30)
        starting.cancel()
        await asyncio.sleep(0)
        go_on.set()
        async with asyncio.timeout(30):
            with pytest.raises(asyncio.CancelledError):
                await starting
        assert not reader.stands

    run(read)


def test_the_process_that_reads_knows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAVE_API_KEY", "secret-key")

    async def read(reader: Reader) -> None:
        await reader.start()
        environment = psutil.Process(pid_of(reader)).environ()
        assert environment["PATH"]
        assert "BRAVE_API_KEY" not in environment

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


def test_the_process_ends_with_the_reader() -> None:
    processes: list[subprocess.Popen[bytes]] = []

    async def read(reader: Reader) -> None:
        await reader.read(page(ARTICLE))
        assert reader._process is not None
        processes.append(reader._process)

    run(read)
    assert processes[0].returncode is not None
