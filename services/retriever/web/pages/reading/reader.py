"""Has pages read in a process of its own: one that hangs it, or takes all memory, costs that process alone."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import orjson

from services.process.children import how_it_ended
from services.process.parent import child_environment
from services.retriever.index.passage_lookup import MOST_PAGE_CHARS
from services.retriever.web.pages.fetch import Fetched
from services.retriever.web.pages.reading.frames import READY, receive, send
from services.retriever.web.pages.refusals import failed, no_reader, unreadable

logger = logging.getLogger(__name__)

T = TypeVar("T")

_COMMAND = (sys.executable, "-m", "services.retriever.web.pages.reading.text")
# What it needs to find itself; the rest has our keys, and it reads what strangers write.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
# Of a terminal, or for all of a service: the retriever gets them, too, and what is counted is still to be read.
_SIGNALS_FOR_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_START_SECONDS = 60.0  # its imports take two, and many on a busy machine
_MOST_PAGES = 500  # whatever a process has kept of its pages goes with it


@dataclass(frozen=True, slots=True)
class Page:
    """What is given of a page: where it came from, its title, its text."""

    url: str
    title: str
    text: str


class Reader:
    """Starts the process when it is first needed, and anew when it has ended. It reads one page at a time.

    Args:
        seconds: that one page may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # It must stay: the kernel ends the process with the thread that has started it; both block the same.
        self._thread = ThreadPoolExecutor(
            1, "reader", initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, _SIGNALS_FOR_ALL)
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._pages = 0
        self._given_up = False

    @property
    def stands(self) -> bool:
        """Whether there is a process that reads."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Have a process that reads. Raises HttpError if there is none."""
        try:
            await self._in_thread(self._start, _START_SECONDS)
        except TimeoutError as error:
            raise no_reader(f"the process that reads them did not start within {_START_SECONDS:g} s") from error
        except OSError as error:
            raise no_reader(f"the process that reads them does not start ({error.strerror or error})") from error

    async def read(self, fetched: Fetched) -> Page:
        """The page as text.

        Raises:
            PageError: it has none that can be read, or its reading failed, for which we may be to blame.
            HttpError: no page can be read.
        """
        await self.start()
        try:
            told = await self._in_thread(lambda: self._exchange(fetched), self._seconds)
        except TimeoutError as error:
            raise failed(f"its text was not found within {self._seconds:g} s") from error
        if told is None:
            raise failed("the process that read it has ended; see the retriever's log")
        if "exhausted" in told:
            raise failed("there was no memory to read it")
        if "fault" in told:
            raise unreadable(told["fault"])
        if not told["text"]:
            raise unreadable("it has no text; a script may write it, and none is run")
        return Page(fetched.url, told["title"], told["text"])

    def close(self) -> None:
        self._give_up()
        self._thread.submit(self._end)
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], T], seconds: float) -> T:
        """Raises TimeoutError; then, or if canceled, the process ends with what it was at."""
        self._given_up = False
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(running)
        finally:
            if not running.done():
                self._give_up()  # for which the thread waits
                await asyncio.wait([running])
                running.exception()  # whoever waited is told otherwise

    def _give_up(self) -> None:
        self._given_up = True
        if (process := self._process) is not None:
            process.kill()

    def _start(self) -> None:
        """Raises OSError if the process does not start."""
        if self.stands and self._pages < _MOST_PAGES:
            return
        self._end()
        process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(_ENVIRONMENT)
        )
        self._process, self._pages = process, 0
        if self._given_up:  # before there was anything to kill
            process.kill()
        assert process.stdout is not None
        if receive(process.stdout) != READY:
            how = self._end()
            if not self._given_up:
                logger.error("the process that reads pages %s before it could read any", how)
            raise OSError(f"it {how}")

    def _exchange(self, fetched: Fetched) -> dict[str, str] | None:
        """What the process makes of a page; None if it has ended over it."""
        process = self._process
        if process is None or self._given_up:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        self._pages += 1
        head = {"html": fetched.is_html, "charset": fetched.charset, "most_chars": MOST_PAGE_CHARS}
        try:
            send(process.stdin, orjson.dumps(head))
            send(process.stdin, fetched.body)
            answer = receive(process.stdout)
        except OSError:
            answer = None
        if answer is None:
            logger.warning("the process that reads pages %s over %s", self._end(), fetched.url)
            return None
        told: dict[str, str] = orjson.loads(answer)
        if "exhausted" in told:
            logger.warning("the process that reads pages had no memory for %s", fetched.url)
            self._end()  # what it has kept may be what is missing
        return told

    def _end(self) -> str:
        """End the process, and say how it ended; the next page starts another."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        process.communicate()
        return how_it_ended(process.returncode)
