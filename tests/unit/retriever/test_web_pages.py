"""Pages of the web by the routes that open them: recorded, replayed, counted, and refused in words."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Response
from mcp import Client

from services.retriever.web.pages import fetch as fetch_module
from services.retriever.web.pages.kinds import kind_and_charset
from services.retriever.web.record import Record
from tests.support.page_sites import ARTICLE, PARAGRAPHS, Internet, PageSite, drip, html, redirect
from tests.support.web_search import searching
from tests.support.web_server import connect, post

ENGINE = "http://127.0.0.1:9"  # which is not asked here
TEXT = "\n".join(["The Starry Night", *PARAGRAPHS])
BACKEND = "retriever.backend=searxng"


@contextmanager
def opening(data: Path, port: int, *overrides: str) -> Iterator[httpx.Client]:
    """A client of a retriever that may open pages at a port of loopback."""
    private = f'web.private_hosts=["127.0.0.1:{port}"]'
    with searching(data, ENGINE, BACKEND, private, *overrides) as client:
        yield client


def opened(client: httpx.Client, url: str) -> httpx.Response:
    return client.post("/open", json={"id": url})


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    """An answer, but for the name of the request."""
    return response.status_code, {name: value for name, value in response.json().items() if name != "request_id"}


def entries(data: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line)["entry"] for line in (data / "web" / name).read_text().splitlines()]


def test_a_page_is_read_once_and_comes_from_the_record_from_then_on(tmp_path: Path) -> None:
    site = PageSite(pages={"/old": redirect("/new"), "/new": html})
    with site.serving() as port:
        url = f"http://127.0.0.1:{port}"
        with opening(tmp_path, port) as client:
            first = opened(client, f"{url}/old#part")
            assert first.status_code == 200, first.text
            assert first.json() == {
                "id": f"{url}/old#part",
                "title": "The Starry Night",
                "text": TEXT,
                "url": f"{url}/new",
                "fields": {},
            }
            assert opened(client, f"{url}/old").json()["text"] == TEXT
        with opening(tmp_path, port) as client:
            assert opened(client, f"{url}/old").json()["text"] == TEXT
            assert client.get("/info").json()["web"]["recorded"] == 1
    assert site.asked == ["/old", "/new"]
    assert [entry["price"] for entry in entries(tmp_path, "searxng-requests.jsonl")] == [0.0]


def test_a_run_repeats_without_the_network_also_what_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {
        "/page": html,
        "/gone": lambda: Response("", 410),
        "/pdf": lambda: Response(b"%PDF", media_type="application/pdf"),
        "/down": lambda: Response("", 500),
        "/script": lambda: html("<html><body><script>write()</script></body></html>"),
        "/secret": html,
        "/moved": redirect("http://10.0.0.7/"),
    }
    site = PageSite(pages=pages, robots="User-agent: *\nDisallow: /secret")
    with site.serving() as port:
        urls = [f"http://127.0.0.1:{port}{path}" for path in pages] + ["http://10.0.0.7/"]
        with opening(tmp_path, port) as client:
            first = [opened(client, url) for url in urls]
    before = (tmp_path / "web" / "searxng.jsonl").read_bytes()
    # The site is gone; and should anything be sent, the retriever would not even load.
    monkeypatch.delattr("services.retriever.web_retriever.Fetcher")
    with opening(tmp_path, port, "web.replay=true") as client:
        again = [opened(client, url) for url in urls]
        never = opened(client, f"http://127.0.0.1:{port}/never")
        accessed = client.post("/access", json={"urls": urls}).json()["result"]
    assert [response.status_code for response in first] == [200, 404, 415, 502, 415, 403, 403, 403]
    assert [told(response) for response in again] == [told(response) for response in first]
    assert (never.status_code, never.json()["error"]) == (409, "not_recorded")
    assert accessed[0]["contents"] == f'"The Starry Night"\n{TEXT}'
    assert accessed[1:] == [None] * 7
    assert (tmp_path / "web" / "searxng.jsonl").read_bytes() == before


def test_what_may_pass_is_tried_again_and_the_last_is_replayed(tmp_path: Path) -> None:
    site = PageSite(pages={"/": lambda: Response("", 500)})
    with site.serving() as port:
        url = f"http://127.0.0.1:{port}/"
        with opening(tmp_path, port) as client:
            assert opened(client, url).status_code == 502
            assert opened(client, url).status_code == 502
            site.pages["/"] = html
            assert opened(client, url).status_code == 200
            site.pages["/"] = lambda: Response("", 404)
            assert opened(client, url).status_code == 200
    assert site.asked == ["/"] * 3
    with opening(tmp_path, port, "web.replay=true") as client:
        assert opened(client, url).json()["text"] == TEXT
    kept = entries(tmp_path, "searxng.jsonl")
    assert ["page" in entry for entry in kept] == [False, False, True]


def test_a_page_is_a_request_that_costs_nothing(tmp_path: Path) -> None:
    site = PageSite(pages={f"/{n}": html for n in range(4)})
    with site.serving() as port:
        urls = [f"http://127.0.0.1:{port}/{n}" for n in range(4)]
        with opening(tmp_path, port, "web.max_requests=2", "web.price=0.1", "web.max_spend=0.1") as client:
            assert [opened(client, url).status_code for url in urls] == [200, 200, 402, 402]
            refused = opened(client, urls[2]).json()
            assert refused["error"] == "budget_spent"
            assert "web.max_requests = 2; raise it" in refused["message"]
            assert opened(client, urls[0]).status_code == 200
            # Not null: whoever reads it would go on without pages.
            assert client.post("/access", json={"urls": urls}).status_code == 402
            assert client.post("/access", json={"urls": urls[:2]}).status_code == 200
            assert client.get("/info").json()["web"]["spent"] == 0
    assert site.asked == ["/0", "/1"]


def test_equal_pages_are_fetched_once(tmp_path: Path) -> None:
    site = PageSite(delay=0.3)
    with site.serving() as port, opening(tmp_path, port) as client:
        url = f"http://127.0.0.1:{port}/"
        [first, second] = client.post("/access", json={"urls": [url, url + "#part"]}).json()["result"]
        assert first["contents"] == second["contents"] == f'"The Starry Night"\n{TEXT}'
        site.pages["/b"] = html
        with ThreadPoolExecutor(8) as pool:
            outcomes = [each.status_code for each in pool.map(lambda _: opened(client, f"{url}b"), range(8))]
    assert outcomes == [200] * 8
    assert site.asked == ["/", "/b"]


def test_a_page_whose_client_has_left_is_recorded(tmp_path: Path) -> None:
    site = PageSite(delay=1.0)
    with site.serving() as port, opening(tmp_path, port) as client:
        body = json.dumps({"id": f"http://127.0.0.1:{port}/"}).encode()
        with connect(client.base_url.port or 0, post("/open", body)):
            until(lambda: bool(site.asked))
        until(lambda: client.get("/info").json()["web"]["recorded"] == 1)
        assert opened(client, f"http://127.0.0.1:{port}/").status_code == 200
    assert site.asked == ["/"]


def test_an_agent_host_fetches_a_page_and_is_told_why_not(tmp_path: Path) -> None:
    site = PageSite()
    with site.serving() as port, opening(tmp_path, port) as client:
        url = f"http://127.0.0.1:{port}/"

        async def use() -> tuple[Any, ...]:
            async with asyncio.timeout(60), Client(f"{client.base_url}/mcp") as host:
                tools = (await host.list_tools()).tools
                assert [tool.name for tool in tools] == ["search", "fetch"]
                assert all(tool.annotations is not None and tool.annotations.open_world_hint for tool in tools)
                return tools[1], *[await host.call_tool("fetch", {"id": each}) for each in (url, url + "a", "x")]

        tool, page, gone, nonsense = asyncio.run(use())
    assert "of the web" in tool.description
    assert page.structured_content == {"id": url, "title": "The Starry Night", "text": TEXT, "url": url, "metadata": {}}
    assert [(answer.is_error, answer.content[0].text) for answer in (gone, nonsense)] == [
        (True, "Error executing tool fetch: its host answered 404"),
        (True, "Error executing tool fetch: it is no address of a page: http://… or https://…"),
    ]


def test_a_name_that_leads_near_us_is_refused_by_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    internet = Internet({"near.example": [["127.0.0.1"], ["10.0.0.7", "::1"]]})
    with opening(tmp_path, 1) as client:
        internet.install(monkeypatch)
        for _ in range(2):
            response = opened(client, "http://near.example/")
            assert (response.status_code, response.json()["error"]) == (403, "address_refused")
    assert internet.resolved == ["near.example"] * 2


def test_addresses_are_asked_for_as_they_are(tmp_path: Path) -> None:
    """Within a corpus `/access` writes links of some wikis otherwise."""
    site = PageSite(pages={"/index.php/blog": html})
    with site.serving() as port, opening(tmp_path, port) as client:
        [page] = client.post("/access", json={"urls": [f"http://127.0.0.1:{port}/index.php/blog"]}).json()["result"]
    assert page["url"] == f"http://127.0.0.1:{port}/index.php/blog"


def test_a_wrong_request_is_refused_by_name(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "id"),
        ({"id": " "}, "id"),
        ({"id": 7}, "id"),
        ({"id": "\ud800"}, "id"),
        ({"id": "a", "url": "b"}, "url: there is no such field"),
        ({"id": "not an address"}, "it is no address of a page"),
        ({"id": "http://site.example:8080/"}, "web.private_hosts"),
        ({"id": "http://a:b@site.example/"}, "a name or a password"),
        ({"id": "http://site.example/" + "a" * 3000}, "2000"),
    ]
    with opening(tmp_path, 1) as client:
        for body, named in wrong:
            content = json.dumps(body).encode()  # as escapes: a lone surrogate has no other form
            response = client.post("/open", content=content, headers={"content-type": "application/json"})
            assert (response.status_code, response.json()["error"]) == (422, "invalid_request")
            assert named in response.json()["message"]


@contextmanager
def full_disk(name: str) -> Iterator[None]:
    """No file of this name can be written while the block runs."""
    fsync = os.fsync

    def full(file: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{file}")).name == name:
            raise OSError(28, "No space left on device")
        fsync(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.retriever.web.lines.os.fsync", full)
        yield


def test_nothing_is_fetched_that_cannot_be_counted(tmp_path: Path) -> None:
    site = PageSite()
    with site.serving() as port, opening(tmp_path, port) as client:
        url = f"http://127.0.0.1:{port}/"
        with full_disk("searxng-requests.jsonl"):
            for response in (opened(client, url), client.post("/access", json={"urls": [url]})):
                assert (response.status_code, response.json()["error"]) == (507, "disk_full")
        assert site.asked == []
        assert opened(client, url).status_code == 200


def test_a_page_that_cannot_be_recorded_is_kept_and_nothing_else_is_fetched(tmp_path: Path) -> None:
    site = PageSite(pages={"/": html, "/b": html}, robots="")
    with site.serving() as port, opening(tmp_path, port) as client:
        urls = [f"http://127.0.0.1:{port}{path}" for path in ("/", "/", "/b", "/", "/b")]
        with full_disk("searxng.jsonl"):
            for url in urls:
                assert (opened(client, url).status_code, site.asked) == (507, ["/"])
        assert len(entries(tmp_path, "searxng-requests.jsonl")) == 1
        assert [opened(client, url).status_code for url in urls] == [200] * 5
    assert site.asked == ["/", "/b"]
    assert len(entries(tmp_path, "searxng.jsonl")) == 2


def test_pages_that_wait_when_the_disk_fills_are_not_fetched(tmp_path: Path) -> None:
    site = PageSite(pages={f"/{n}": html for n in range(20)}, robots="")
    with site.serving() as port, opening(tmp_path, port) as client, full_disk("searxng.jsonl"):
        urls = [f"http://127.0.0.1:{port}/{n}" for n in range(20)]
        with ThreadPoolExecutor(20) as pool:
            assert {each.status_code for each in pool.map(lambda url: opened(client, url), urls)} == {507}
        assert len(site.asked) < 15  # not those that waited for their turn


def test_a_page_that_could_not_be_recorded_is_at_the_end(tmp_path: Path) -> None:
    site = PageSite()
    with site.serving() as port:
        url = f"http://127.0.0.1:{port}/"
        with opening(tmp_path, port) as client, full_disk("searxng.jsonl"):
            assert opened(client, url).status_code == 507
        assert len(entries(tmp_path, "searxng.jsonl")) == 1


def test_pages_that_fail_are_no_outage_of_the_retriever(tmp_path: Path) -> None:
    site = PageSite(pages={f"/{n}": lambda: Response("", 500) for n in range(5)})
    with site.serving() as port, opening(tmp_path, port) as client:
        for n in range(5):
            assert opened(client, f"http://127.0.0.1:{port}/{n}").status_code == 502
        assert client.get("/readyz").status_code == 200


def test_a_page_of_an_article_longer_than_a_line_is_whole(tmp_path: Path) -> None:
    paragraphs = "".join(f"<p>Paragraph {n} says something about the painting, in a sentence.</p>" for n in range(5000))
    site = PageSite(pages={"/": lambda: html(ARTICLE.replace("</article>", f"{paragraphs}</article>"))})
    with site.serving() as port, opening(tmp_path, port) as client:
        text = opened(client, f"http://127.0.0.1:{port}/").json()["text"]
    assert text.startswith(TEXT)
    assert text.endswith("Paragraph 4999 says something about the painting, in a sentence.")


def test_recorded_pages_that_are_too_large_together_are_not_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = PageSite(pages={f"/{n}": lambda: Response("a" * 300_000, media_type="text/plain") for n in range(20)})
    with site.serving() as port, opening(tmp_path, port, "retriever.max_answer_bytes=1000000") as client:
        urls = [f"http://127.0.0.1:{port}/{n}" for n in range(20)]
        assert [opened(client, url).status_code for url in urls] == [200] * 20
        read: list[str] = []
        page = Record.page

        def watched(record: Record, url: str) -> Any:
            with pytest.raises(RuntimeError):  # the loop would stand still meanwhile
                asyncio.get_running_loop()
            read.append(url)
            return page(record, url)

        monkeypatch.setattr(Record, "page", watched)
        refused = client.post("/access", json={"urls": urls})
        assert (refused.status_code, refused.json()["error"]) == (422, "answer_too_large")
        assert len(read) < 10
        assert client.post("/access", json={"urls": urls[:3]}).status_code == 200


def test_too_many_requests_for_pages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.retriever.web_pages.MOST_WAITING", 1)
    site = PageSite(pages={"/": drip})
    with site.serving() as port, opening(tmp_path, port, "web.timeout=30") as client:
        body = json.dumps({"urls": [f"http://127.0.0.1:{port}/"]}).encode()
        with connect(client.base_url.port or 0, post("/access", body)):
            until(lambda: bool(site.asked))
            busy = client.post("/access", json={"urls": [f"http://127.0.0.1:{port}/"]})
        assert (busy.status_code, busy.json()["error"]) == (503, "busy")
        until(lambda: client.post("/access", json={"urls": ["no address"]}).status_code == 200)


def test_whoever_finds_too_many_pages_is_told_when_to_come_again(tmp_path: Path) -> None:
    site = PageSite()
    overrides = ("web.min_interval=600", "retriever.max_queue_queries=3")
    with site.serving() as port, opening(tmp_path, port, *overrides) as client:
        url = f"http://127.0.0.1:{port}"
        body = json.dumps({"urls": [f"{url}/{n}" for n in range(3)]}).encode()
        with connect(client.base_url.port or 0, post("/access", body)):
            until(lambda: bool(site.robots_asked))
            refused = opened(client, f"{url}/3")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1800")


def test_requests_that_wait_hold_a_bounded_memory_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.retriever.web_pages._HELD_ANSWERS", 1)
    large = {f"/{n}": lambda: Response("a" * 600_000, media_type="text/plain") for n in range(2)}
    site = PageSite(pages={"/drip": drip, **large})
    with (
        site.serving() as port,
        opening(tmp_path, port, "web.timeout=600", "retriever.max_answer_bytes=1000000") as client,
    ):
        url = f"http://127.0.0.1:{port}"

        def second() -> int:
            return client.post("/access", json={"urls": [f"{url}/1"]}).status_code

        assert second() == 200
        body = json.dumps({"urls": [f"{url}/0", f"{url}/drip"]}).encode()
        with connect(client.base_url.port or 0, post("/access", body)):
            until(lambda: second() == 503)
        until(lambda: second() == 200)


def test_one_page_that_breaks_us_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite(pages={"/": html, "/odd": html})
    with site.serving() as port, opening(tmp_path, port) as client:

        def broken(headers: Any) -> tuple[str, str]:
            if site.asked[-1] == "/odd":
                raise RecursionError
            return kind_and_charset(headers)

        monkeypatch.setattr(fetch_module, "kind_and_charset", broken)
        urls = [f"http://127.0.0.1:{port}{path}" for path in ("/", "/odd")]
        [page, odd] = client.post("/access", json={"urls": urls}).json()["result"]
        assert page["contents"] == f'"The Starry Night"\n{TEXT}'
        assert odd is None
        assert (opened(client, urls[1]).status_code, opened(client, urls[1]).json()["error"]) == (502, "page_failed")
