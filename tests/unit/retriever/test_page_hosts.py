"""Hosts of pages are asked as they want it: what robots.txt says, one thing at a time, with pauses."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from fastapi import Response

from services.retriever.web.pages.fetch import MOST_AHEAD, Fetched
from services.retriever.web.pages.robots import Robots
from services.retriever.web.pages.urls import page_url
from tests.support.page_fetching import SITE, Fetch, Sent, fetched, new_fetcher, nothing, reachable, refused, run
from tests.support.page_sites import ARTICLE, PUBLIC, Internet, PageSite, drip, html, redirect


def test_robots_txt_is_asked_for_once_and_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    site, sent = PageSite(pages={"/a": html, "/private/b": html}, robots="User-agent: *\nDisallow: /private/"), Sent()
    with reachable(monkeypatch, site):

        async def both(fetch: Fetch) -> list[Any]:
            return list(await asyncio.gather(fetch(f"{SITE}/a"), fetch(f"{SITE}/private/b"), return_exceptions=True))

        page, error = run(both, sent=sent)
    assert page.body == ARTICLE.encode()
    assert (error.status, error.error) == (403, "page_refused")
    assert "robots.txt" in str(error)
    assert (site.asked, site.robots_asked, sent.pages) == (["/a"], 1, 2)  # what is recorded is counted


def test_a_redirect_is_not_followed_to_where_robots_txt_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite(pages={"/": redirect("/private"), "/private": html}, robots="User-agent: *\nDisallow: /private")
    with reachable(monkeypatch, site):
        assert refused(f"{SITE}/").status == 403
    assert site.asked == ["/"]


@pytest.mark.parametrize(
    ("robots", "status"),
    [
        (Response(status_code=404), 200),
        (Response(status_code=403), 200),
        (Response(status_code=500), 502),
        (Response(status_code=429), 502),
        (Response("", 302, {"Location": "http://10.0.0.7/robots.txt"}), 403),
        (Response("", headers={"Content-Encoding": "br"}), 502),
        (Response("User-agent: *\n" + "".join(f"Disallow: /{n}\n" for n in range(30_000))), 502),
        (Response(b"User-agent: *\n" + b"Disallow: /x\n" * 100_000 + b"Disallow: /"), 200),
    ],
)
def test_a_host_without_robots_txt_allows_all_and_one_that_cannot_say_nothing(
    monkeypatch: pytest.MonkeyPatch, robots: Response, status: int
) -> None:
    site = PageSite(robots=robots)
    with reachable(monkeypatch, site):
        if status == 200:
            assert fetched(f"{SITE}/").body == ARTICLE.encode()
        else:
            assert refused(f"{SITE}/").status == status
            assert site.asked == []


def test_a_host_is_asked_one_thing_at_a_time_with_a_pause_between(monkeypatch: pytest.MonkeyPatch) -> None:
    site, sent = PageSite(pages={f"/{n}": html for n in range(4)}, delay=0.05), Sent()
    with reachable(monkeypatch, site):

        async def four(fetch: Fetch) -> None:
            await asyncio.gather(*(fetch(f"{SITE}/{n}") for n in range(4)))

        begun = time.monotonic()
        run(four, min_interval=0.4, sent=sent)
    assert site.most_at_once == 1
    assert sent.last - begun > 4 * 0.4  # robots.txt, then four pages


def test_a_robots_txt_that_leads_to_another_host_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite(robots=Response("", 302, {"Location": "http://other.example/rules"}))
    other = PageSite(pages={"/": html, "/rules": lambda: Response("", media_type="text/plain")}, delay=1.0)
    with site.serving() as port, other.serving() as other_port:
        names = {"site.example": [[PUBLIC]], "other.example": [["198.41.0.5"]]}
        Internet(names, {(PUBLIC, 80): port, ("198.41.0.5", 80): other_port}).install(monkeypatch)

        async def both(fetch: Fetch) -> None:
            first = asyncio.create_task(fetch("http://other.example/"))
            while not other.asked:  # noqa: ASYNC110 - the site is in another thread
                await asyncio.sleep(0.01)
            await fetch(f"{SITE}/")
            await first

        run(both)
    assert (other.asked, other.most_at_once) == (["/", "/rules"], 1)


def test_two_hosts_whose_robots_txt_lead_to_each_other_are_both_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("site.example", "other.example")
    sites = [
        PageSite(
            pages={"/": html, "/rules": lambda: Response("", media_type="text/plain")},
            robots=Response("", 302, {"Location": f"http://{name}/rules"}),
            delay=0.2,
        )
        for name in reversed(names)
    ]
    with sites[0].serving() as port, sites[1].serving() as other_port:
        internet = {(PUBLIC, 80): port, ("198.41.0.5", 80): other_port}
        Internet({names[0]: [[PUBLIC]], names[1]: [["198.41.0.5"]]}, internet).install(monkeypatch)

        async def both(fetch: Fetch) -> None:
            async with asyncio.timeout(30):
                await asyncio.gather(*(fetch(f"http://{name}/") for name in names))

        run(both, timeout=60.0)
    assert [site.asked for site in sites] == [["/rules", "/"]] * 2


def test_a_slow_host_keeps_no_place_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = PageSite(pages={f"/{n}": drip for n in range(9)}), PageSite()
    with slow.serving() as slow_port, quick.serving() as quick_port:
        names = {"slow.example": [["198.41.0.5"]], "quick.example": [[PUBLIC]]}
        Internet(names, {("198.41.0.5", 80): slow_port, (PUBLIC, 80): quick_port}).install(monkeypatch)

        async def both(fetch: Fetch) -> None:
            waiting = [asyncio.create_task(fetch(f"http://slow.example/{n}")) for n in range(9)]
            await asyncio.sleep(0)  # so that they come first
            await fetch("http://quick.example/")
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

        run(both, at_once=2, timeout=60.0)


def test_a_host_that_wants_a_pause_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite(pages={"/": lambda: Response("", 503, {"Retry-After": "60"}), "/a": html})
    with reachable(monkeypatch, site):

        async def twice(fetch: Fetch) -> list[Any]:
            return [(await asyncio.gather(fetch(SITE + path), return_exceptions=True))[0] for path in ("/", "/a")]

        first, second = run(twice)
    assert "503" in str(first)
    assert (second.status, "wants a pause" in str(second)) == (502, True)
    assert site.asked == ["/"]


@pytest.mark.parametrize("step", ["read", "allows"])
def test_the_loop_goes_on_while_a_robots_txt_is_read(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    begun, seen = threading.Event(), threading.Event()
    slow = getattr(Robots, step)

    def watched(*given: Any) -> Any:
        begun.set()
        assert seen.wait(30), "the loop stood still"
        return slow(*given)

    monkeypatch.setattr(Robots, step, watched)
    with reachable(monkeypatch, PageSite(robots="")):

        async def both(fetch: Fetch) -> Fetched:
            fetching = asyncio.create_task(fetch(f"{SITE}/"))
            await asyncio.to_thread(begun.wait, 30)
            seen.set()
            return await fetching

        assert run(both, timeout=60.0).body == ARTICLE.encode()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_names_that_nobody_answers_keep_only_pages_waiting(
    monkeypatch: pytest.MonkeyPatch, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A search engine is looked up as aiohttp and httpx do: by the loop."""
    answer, asked = threading.Event(), threading.Event()
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *others: Any, **more: Any) -> Any:
        if not str(host).endswith(".slow.example"):
            return resolve(host, *others, **more)
        asked.set()
        answer.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def work() -> None:
        fetcher = new_fetcher(Sent(), at_once=50, timeout=60.0)

        async def fetch(url: str) -> None:
            async with fetcher.fetch(page_url(url, ()), nothing):
                pass

        opening = [asyncio.create_task(fetch(f"http://{n}.slow.example/")) for n in range(50)]
        # Not in a thread of the loop: they are what is at stake.
        while not asked.is_set():
            assert not any(task.done() for task in opening)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            assert await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
            assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)
            await asyncio.to_thread(time.monotonic)
        answer.set()
        outcomes = await asyncio.gather(*opening, return_exceptions=True)
        await fetcher.close()
        assert {getattr(error, "status", error) for error in outcomes} == {502}

    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            runner.run(work())
        finally:
            answer.set()


def test_pages_that_are_not_yet_read_hold_up_those_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite(pages={f"/{n}": html for n in range(12)})
    with reachable(monkeypatch, site):

        async def work() -> None:
            fetcher, read, fetched_one = new_fetcher(Sent(), at_once=2), asyncio.Event(), asyncio.Semaphore(0)

            async def fetch(n: int) -> None:
                async with fetcher.fetch(page_url(f"{SITE}/{n}", ()), nothing):
                    fetched_one.release()
                    await read.wait()

            opening = [asyncio.create_task(fetch(n)) for n in range(12)]
            async with asyncio.timeout(30):
                for _ in range(2 + MOST_AHEAD):
                    await fetched_one.acquire()
            await asyncio.sleep(0.3)  # for what must not happen
            assert len(site.asked) == 2 + MOST_AHEAD
            read.set()
            await asyncio.gather(*opening)
            assert len(site.asked) == 12
            await fetcher.close()

        asyncio.run(work())
