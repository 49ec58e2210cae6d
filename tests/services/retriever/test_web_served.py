"""The served retriever in front of a search engine, killed and stopped: what is paid for is counted and recorded."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.page_sites import PARAGRAPHS, PageSite, html
from tests.support.search_engines import KEYS, SearchEngine
from tests.support.web_server import connect, post

AT_ONCE = 4
QUERIES = [f"query {number}" for number in range(40)]


def entries(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def serve(launch: Any, tmp_path: Path) -> Callable[[str], Any]:
    def start(address: str) -> Any:
        return launch(
            "retriever",
            f"paths.data={tmp_path}",
            "retriever.backend=brave",
            f"web.address={address}",
            "web.min_interval=0",
            f"web.at_once={AT_ONCE}",
            environment={"BRAVE_API_KEY": KEYS["brave"]},
        )

    return start


def ask(url: str, queries: list[str]) -> httpx.Response:
    return httpx.post(f"{url}/search", json={"queries": queries, "top_k": 3}, timeout=60)


def test_a_killed_retriever_forgets_neither_a_request_nor_an_answer(
    serve: Callable[[str], Any], tmp_path: Path
) -> None:
    engine = SearchEngine("brave", delay=0.05)
    ledger, record = tmp_path / "web" / "brave-requests.jsonl", tmp_path / "web" / "brave.jsonl"
    with engine.serving() as address:
        server = serve(address)

        def ask_and_lose() -> None:
            with contextlib.suppress(httpx.TransportError):
                ask(server.url, QUERIES)

        asking = threading.Thread(target=ask_and_lose)
        asking.start()
        until(lambda: record.exists() and len(entries(record)) >= 12)
        server.process.kill()
        server.process.wait()
        asking.join()
        httpx.get(address, timeout=60)  # once this is answered, the engine has read all that was sent before
        sent, counted, recorded = len(engine.asked), len(entries(ledger)), len(entries(record))
        # What is counted and not sent is what was about to be; what is sent and not recorded was under way,
        # or waited for a slow disk.
        assert sent <= counted <= sent + AT_ONCE
        assert 12 <= recorded <= sent
        again = serve(address)
        response = ask(again.url, QUERIES)
        assert response.status_code == 200
        assert all(len(hits) == 3 for hits in response.json()["results"])
        assert len(engine.asked) == sent + len(QUERIES) - recorded
        assert httpx.get(f"{again.url}/info").json()["web"]["requests"] == counted + len(QUERIES) - recorded


def test_what_is_paid_for_at_the_end_is_recorded_though_nobody_waits(
    serve: Callable[[str], Any], tmp_path: Path
) -> None:
    engine = SearchEngine("brave", delay=0.3)
    with engine.serving() as address:
        server = serve(address)
        body = json.dumps({"queries": QUERIES[:AT_ONCE]}).encode()
        with connect(int(server.url.rsplit(":", 1)[1]), post("/search", body)):
            until(lambda: len(engine.asked) == AT_ONCE)
        server.process.terminate()
        server.process.wait(timeout=30)
    assert len(entries(tmp_path / "web" / "brave.jsonl")) == AT_ONCE
    assert "every answer of the web and every request sent is on the disk" in server.log.read_text()


@contextlib.contextmanager
def opening(launch: Any, data: Path, site: PageSite) -> Iterator[tuple[Any, psutil.Process, str]]:
    """A retriever that has opened the page `/` of the site, its process that reads pages, and the site's address."""
    with site.serving() as port:
        url = f"http://127.0.0.1:{port}"
        server = launch(
            "retriever",
            f"paths.data={data}",
            "retriever.backend=searxng",
            "web.address=http://127.0.0.1:9",
            f'web.private_hosts=["127.0.0.1:{port}"]',
        )
        page = httpx.post(f"{server.url}/open", json={"id": f"{url}/"}, timeout=60).json()
        assert page["text"].splitlines()[1:] == PARAGRAPHS
        [reader] = [
            child
            for child in psutil.Process(server.process.pid).children(recursive=True)
            if "services.retriever.web.pages.reading.text" in child.cmdline()
        ]
        yield server, reader, url


@contextlib.contextmanager
def while_it_reads(server: Any, reader: psutil.Process, url: str) -> Iterator[None]:
    """The block runs while a page is with the process that reads, which is stopped meanwhile."""
    reader.suspend()
    with connect(int(server.url.rsplit(":", 1)[1]), post("/open", json.dumps({"id": url}).encode())):
        with open(f"/proc/{reader.pid}/fd/0", "rb") as pipe:
            until(lambda: fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4))
        yield


@pytest.mark.parametrize("end", ["terminate", "kill"])
@pytest.mark.parametrize("is_reading", [False, True])
def test_the_process_that_reads_pages_ends_with_the_retriever(
    launch: Any, tmp_path: Path, end: str, is_reading: bool
) -> None:
    site = PageSite(pages={"/": html, "/b": html})
    with opening(launch, tmp_path, site) as (server, reader, url):
        with while_it_reads(server, reader, f"{url}/b") if is_reading else contextlib.nullcontext():
            getattr(server.process, end)()
            server.process.wait(timeout=30)
        psutil.wait_procs([reader], timeout=30)
        assert not reader.is_running() or reader.status() == psutil.STATUS_ZOMBIE


def test_a_page_that_is_read_when_all_processes_are_told_to_end_is_recorded(launch: Any, tmp_path: Path) -> None:
    """As `research up` and `timeout` tell a process group, and systemd each process."""
    site = PageSite(pages={"/": html, "/b": html})
    with opening(launch, tmp_path, site) as (server, reader, url), while_it_reads(server, reader, f"{url}/b"):
        os.killpg(server.process.pid, signal.SIGTERM)
        reader.resume()
        server.process.wait(timeout=30)
    [_, kept] = [json.loads(line)["entry"] for line in entries(tmp_path / "web" / "searxng.jsonl")]
    assert (kept["opened"], kept["page"]["title"]) == (f"{url}/b", "The Starry Night")
