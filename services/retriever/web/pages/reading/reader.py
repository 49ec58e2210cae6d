"""Has pages read in a process of its own: one that hangs it, or takes all memory, costs that process alone."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import orjson

from services.process.children import how_it_ended
from services.process.parent import child_environment
from services.retriever.index.passage_lookup import MOST_PAGE_CHARS
from services.retriever.web.pages.fetch import Fetched
from services.retriever.web.pages.reading.frames import receive, send
from services.retriever.web.pages.refusals import unreadable

logger = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-m", "services.retriever.web.pages.reading.text")
# A page of the most bytes takes a few; the first one waits for the process to start.
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Page:
    """What is given of a page: where it came from, its title, its text."""

    url: str
    title: str
    text: str


class Reader:
    """Starts the process when it is first needed, and anew when it has ended.

    Args:
        seconds: that one page may take.
    """

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        # It must stay: the kernel ends the process with the thread that has started it.
        self._thread = ThreadPoolExecutor(1, "reader")
        self._turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    async def read(self, fetched: Fetched) -> Page:
        """The page as text. Raises PageError if it has none that can be read."""
        async with self._turn:
            reading = asyncio.get_running_loop().run_in_executor(self._thread, self._exchange, fetched)
            try:
                async with asyncio.timeout(self._seconds):
                    told = await asyncio.shield(reading)
            except TimeoutError as error:
                raise unreadable(f"its text was not found within {self._seconds:g} s") from error
            finally:
                if not reading.done():
                    self._kill()  # for which the thread waits
                    await asyncio.wait([reading])
        if told is None:
            raise unreadable("it cannot be read; see the retriever's log")
        if "fault" in told:
            raise unreadable(told["fault"])
        if not told["text"]:
            raise unreadable("it has no text; a script may write it, and none is run")
        return Page(fetched.url, told["title"], told["text"])

    def close(self) -> None:
        self._kill()
        self._thread.submit(self._end)
        self._thread.shutdown()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _exchange(self, fetched: Fetched) -> dict[str, str] | None:
        """What the process makes of a page; None if it has ended over it."""
        process = self._process = self._process or subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
        )
        assert process.stdin is not None
        assert process.stdout is not None
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
        return told

    def _end(self) -> str:
        """End the process, and say how it ended; the next page starts another."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        process.communicate()
        return how_it_ended(process.returncode)
