"""Several retrievers as one: over real HTTP, to servers that answer as ours do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from research import retrievers as module
from research import routing
from research.clients import RetrieverClient
from research.errors import ConfigurationError, ServiceError
from research.retrievers import Retrievers, retriever_of
from services.trainer import wiring
from tests.support.tiny_model import tiny_settings

QUERIES = [f"query {number}" for number in range(60)]


class Index:
    """A retriever: `status` of every answer, `revision` of its index, and what it was asked."""

    def __init__(self, name: str) -> None:
        self.name, self.status, self.revision = name, 200, "r1"
        self.queries: list[str] = []
        self.url = ""

    def reply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/search":
            self.queries.append(body["query"])
            hit = {"id": "1", "title": self.name, "text": "", "score": 1.0}
            return {"revision": self.revision, "index": "x", "results": [[hit]]}
        index = {"name": "x", "revision": self.revision, "passages": 1, "structure": "Flat", "lexical": False}
        return {
            "encoder": "e5",
            "backend": "onnx",
            "dimension": 4,
            "pooling": "mean",
            "index": "x",
            "indexes": [{**index, "built_with": "onnx", "created": "today"}],
            "limits": {"top_k": 5, "query_chars": 99, "query_tokens": 9, "queue": 9},
        }


@contextmanager
def served(index: Index) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            data = json.dumps(index.reply(self.path, body)).encode()
            self.send_response(index.status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815 (the name that the base class calls)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Index]]:
    monkeypatch.setattr(module, "_CHECK_SECONDS", 0.01)
    # On a busy machine one of the three may well seem slow, and keys leave a slow server on purpose.
    monkeypatch.setattr(routing, "_ANSWERS", 10_000)
    indexes = [Index(name) for name in "abc"]
    with ExitStack() as opened:
        for index in indexes:
            opened.enter_context(served(index))
        yield indexes


def use(
    indexes: list[Index], work: Callable[[Retrievers], Awaitable[None]], retries: int = 0, *, follows: bool = False
) -> None:
    async def run() -> None:
        urls = [index.url for index in indexes]
        async with asyncio.timeout(30), Retrievers(urls, retries=retries, follows=follows) as several:
            await work(several)

    asyncio.run(run())


async def ask(several: Retrievers) -> list[str]:
    found = await asyncio.gather(*(several.search(query, 1) for query in QUERIES))
    return [passage.title for [passage] in found]


def test_searches_are_divided_and_a_query_returns_to_its_server(three: list[Index]) -> None:
    async def work(several: Retrievers) -> None:
        await several.check_ready()
        first = [(await several.search(query, 1))[0].title for query in QUERIES]
        assert first == [(await several.search(query, 1))[0].title for query in QUERIES]
        assert set(first) == {"a", "b", "c"}

    use(three, work)


def test_a_dead_one_is_left_out_and_comes_back(three: list[Index]) -> None:
    async def work(several: Retrievers) -> None:
        await several.check_ready()
        three[1].status = 503
        assert set(await ask(several)) == {"a", "c"}
        three[1].queries.clear()
        assert set(await ask(several)) == {"a", "c"}
        assert not three[1].queries
        three[1].status = 200
        found: list[str] = []
        while "b" not in found:
            found = await ask(several)
            await asyncio.sleep(0.01)

    use(three, work)


def test_different_indexes_are_refused_at_the_start(three: list[Index]) -> None:
    three[2].revision = "r2"

    async def work(several: Retrievers) -> None:
        with pytest.raises(ConfigurationError, match=r"different indexes.*revision r1.*revision r2"):
            await several.check_ready()

    use(three, work)


def test_one_that_comes_back_with_another_index_stays_out(three: list[Index]) -> None:
    async def work(several: Retrievers) -> None:
        await several.check_ready()
        three[0].revision = "r2"
        assert set(await ask(several)) == {"b", "c"}
        await several.check_ready()
        assert set(await ask(several)) == {"b", "c"}

    use(three, work)


def test_a_policy_moves_on_with_all_of_them_and_a_run_does_not(three: list[Index]) -> None:
    """A run trains on one index; a policy that serves would answer 503 until somebody restarts it."""

    async def work(several: Retrievers) -> None:
        await several.check_ready()
        for index in three[:2]:
            index.revision = "r2"
        assert set(await ask(several)) == {"c"}, "while one has the former index, it is the one"
        three[2].revision = "r2"
        if not several._follows:
            with pytest.raises(ServiceError, match="revision r2"):
                await ask(several)
            return
        async with asyncio.timeout(30):
            while True:
                with suppress(ServiceError):
                    if set(await ask(several)) == {"a", "b", "c"}:
                        return
                await asyncio.sleep(0.01)

    use(three, work)
    for index in three:
        index.revision = "r1"
    use(three, work, follows=True)


def test_one_that_is_dead_at_the_start_is_left_out(three: list[Index]) -> None:
    three[0].status = 503

    async def work(several: Retrievers) -> None:
        await several.check_ready()
        assert set(await ask(several)) == {"b", "c"}

    use(three, work)


def test_without_any_it_is_said_and_a_later_try_finds_those_that_are_back(three: list[Index]) -> None:
    async def work(several: Retrievers) -> None:
        await several.check_ready()
        for index in three:
            index.status = 503
        with pytest.raises(ServiceError, match="answered 503"):
            await several.search("x", 1)
        with pytest.raises(ServiceError, match="not ready"):
            await several.check_ready()
        for index in three:
            index.status = 200
        assert await several.search("x", 1)

    use(three, work)


def test_a_refused_query_takes_no_server_out(three: list[Index]) -> None:
    async def work(several: Retrievers) -> None:
        await several.check_ready()
        for index in three:
            index.status = 422
        with pytest.raises(ServiceError, match="answered 422"):
            await several.search("x", 1)
        for index in three:
            index.status = 200
        assert set(await ask(several)) == {"a", "b", "c"}

    use(three, work)


def test_one_address_is_an_ordinary_client() -> None:
    assert isinstance(retriever_of(["http://a"]), RetrieverClient)
    assert isinstance(retriever_of(["http://a", "http://b"]), Retrievers)


def test_a_run_with_one_retriever_keeps_to_its_index(tmp_path: Path) -> None:
    """One that comes back with another index is an outage, and not a run that learns from other passages."""
    index = Index("a")

    async def work() -> None:
        settings = tiny_settings(tmp_path, f"endpoints.retriever_url={index.url}", "episode.retries=0")
        async with wiring._retriever(settings) as retriever:
            await retriever.check_ready()
            assert await retriever.search("q", 1)
            index.revision = "r2"
            for meeting in (retriever.search("q", 1), retriever.check_ready()):
                with pytest.raises(ServiceError, match="r2"):
                    await meeting
            index.revision = "r1"
            await retriever.check_ready()
            assert await retriever.search("q", 1)

    with served(index):
        asyncio.run(work())
