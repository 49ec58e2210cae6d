"""Pages are fetched from public addresses alone, in bounded time and bytes, as their hosts want it."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from fastapi import Response

from services.retriever.web.pages.fetch import MOST_AHEAD, Fetched, Fetcher
from services.retriever.web.pages.kinds import kind_and_charset
from services.retriever.web.pages.refusals import PageError
from services.retriever.web.pages.robots import Robots
from services.retriever.web.pages.urls import page_url
from tests.support.page_sites import ARTICLE, PUBLIC, Internet, PageSite, bomb, drip, endless, hollow, html, redirect

SITE = "http://site.example"


class Sent:
    """Counts pages, as a budget does."""

    def __init__(self) -> None:
        self.pages = 0
        self.last = 0.0

    async def charge(self) -> None:
        self.pages += 1
        self.last = time.monotonic()


async def nothing() -> None:
    """What a page waits for before it is counted."""


def new_fetcher(sent: Sent, private: tuple[str, ...] = (), **limits: Any) -> Fetcher:
    usual = {"timeout": 20.0, "min_interval": 0.0, "contact": "team@site.example", "at_once": 4}
    return Fetcher(sent.charge, private_hosts=private, **{**usual, **limits})


def run(
    work: Callable[[Callable[[str], Awaitable[Fetched]]], Awaitable[Any]],
    *,
    private: tuple[str, ...] = (),
    sent: Sent | None = None,
    **limits: Any,
) -> Any:
    """The work, which receives a function that fetches an address."""

    async def all_of_it() -> Any:
        fetcher = new_fetcher(sent or Sent(), private, **limits)

        async def fetch(asked: str) -> Fetched:
            async with fetcher.fetch(page_url(asked, private), nothing) as page:
                return page

        try:
            return await work(fetch)
        finally:
            await fetcher.close()

    return asyncio.run(all_of_it())


def fetched(asked: str, **options: Any) -> Fetched:
    page = run(lambda fetch: fetch(asked), **options)
    assert isinstance(page, Fetched)
    return page


def refused(asked: str, **options: Any) -> PageError:
    with pytest.raises(PageError) as caught:
        fetched(asked, **options)
    return caught.value


@contextmanager
def reachable(
    patch: pytest.MonkeyPatch, site: PageSite, names: dict[str, list[list[str]]] | None = None
) -> Iterator[Internet]:
    """`site` at the public address, under the name of `SITE`; and at its own port of loopback."""
    with site.serving() as port:
        internet = Internet({"site.example": [[PUBLIC]], **(names or {})}, {(PUBLIC, 80): port})
        internet.install(patch)
        yield internet


@contextmanager
def listening() -> Iterator[socket.socket]:
    """A server near us that must never be connected to."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_page_comes_as_it_was_sent_and_says_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    site = PageSite(pages={"/a?b=1": html})
    with reachable(monkeypatch, site):
        page = fetched(f"{SITE}/a?b=1#part")
    assert page == Fetched(f"{SITE}/a?b=1", True, "utf-8", ARTICLE.encode())
    [headers] = site.headers
    assert headers["user-agent"] == "research-retriever/0.1 (team@site.example)"
    assert set(headers) == {"host", "user-agent", "accept", "accept-encoding", "connection"}


@pytest.mark.parametrize(
    "near",
    ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "169.254.169.254"],
)
def test_nothing_near_us_is_connected_to(monkeypatch: pytest.MonkeyPatch, near: str) -> None:
    internet = Internet()
    internet.install(monkeypatch)
    error = refused(f"http://{near}/")
    assert (error.status, error.error) == (403, "address_refused")
    assert internet.connected == []


@pytest.mark.parametrize("numbers", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1.", "%31%32%37.0.0.1"])
def test_numbers_that_a_resolver_takes_for_an_address_are_no_way_around(
    monkeypatch: pytest.MonkeyPatch, numbers: str
) -> None:
    internet = Internet()
    internet.install(monkeypatch)
    assert refused(f"http://{numbers}/").status in (403, 422, 502)
    assert internet.connected == []


@pytest.mark.parametrize("answer", [["10.0.0.7"], ["10.0.0.7", "fd00::1"], ["::ffff:10.0.0.7"], ["64:ff9b::a00:7"]])
def test_a_name_that_leads_near_us_is_refused(monkeypatch: pytest.MonkeyPatch, answer: list[str]) -> None:
    internet = Internet({"near.example": [answer]})
    internet.install(monkeypatch)
    error = refused("http://near.example/")
    assert (error.status, error.error) == (403, "address_refused")
    assert "web.private_hosts" in str(error)
    assert internet.connected == []


def test_of_several_addresses_only_the_public_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with reachable(monkeypatch, PageSite(), {"site.example": [["127.0.0.1", PUBLIC, "10.0.0.7"]]}) as internet:
        assert fetched(f"{SITE}/").body == ARTICLE.encode()
    assert set(internet.connected) == {(PUBLIC, 80)}


def test_a_name_with_very_many_addresses_leads_to_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    internet = Internet({"many.example": [[f"198.41.{n // 200}.{n % 200}" for n in range(4000)]]})
    internet.install(monkeypatch)
    assert refused("http://many.example/").status == 502
    assert len(set(internet.connected)) == 8


def test_what_was_checked_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means something public once, and something near us from then on."""
    site = PageSite(robots="")
    with reachable(monkeypatch, site, {"site.example": [[PUBLIC], ["127.0.0.1"]]}) as internet:
        error = refused(f"{SITE}/")  # robots.txt came from the first address; the page would come from the second
        assert error.status == 403
        assert (internet.resolved, internet.connected) == (["site.example"] * 2, [(PUBLIC, 80)])
    assert site.asked == []


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "http://near.example/",
        "//[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://site.example:8000/",
        "http://user:password@site.example/",
        "ftp://site.example/",
        "file:///etc/passwd",
        "http://[::1",
    ],
)
def test_a_redirect_is_checked_as_if_it_were_asked_for(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    site = PageSite(pages={"/": lambda: Response("", 302, {"Location": location})})
    with reachable(monkeypatch, site, {"near.example": [["192.168.1.1"]]}) as internet:
        error = refused(f"{SITE}/")
    assert (error.status, error.error) == (403, "address_refused")
    assert {address for address, _ in internet.connected} == {PUBLIC}
    assert site.asked == ["/"]


def test_redirects_are_followed_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {f"/{n}": redirect(f"/{n + 1}") for n in range(6)} | {"/6": html}
    site, sent = PageSite(pages=pages), Sent()
    with reachable(monkeypatch, site):
        assert fetched(f"{SITE}/1", sent=sent).url == f"{SITE}/6"
        assert sent.pages == 1
        error = refused(f"{SITE}/0")
    assert (error.status, error.error) == (502, "page_failed")
    assert "more than 5 redirects" in str(error)
    assert len(site.asked) == 12


def test_hosts_that_are_named_may_be_near_us_at_their_port(monkeypatch: pytest.MonkeyPatch) -> None:
    site, other = PageSite(), PageSite()
    with reachable(monkeypatch, PageSite()), site.serving() as port, other.serving() as closed:
        private = (f"127.0.0.1:{port}",)
        assert fetched(f"http://127.0.0.1:{port}/", private=private).body == ARTICLE.encode()
        assert refused(f"http://127.0.0.1:{closed}/", private=private).status == 422
        assert refused(f"http://127.0.0.2:{port}/", private=private).status == 422
        site.pages["/"] = redirect(f"http://127.0.0.1:{closed}/")
        assert refused(f"http://127.0.0.1:{port}/", private=private).status == 403
    assert other.asked == []


def test_no_cookie_and_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine site.example login us password ours\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    site = PageSite(
        pages={"/": lambda: Response("", 302, {"Location": "/next", "Set-Cookie": "id=1; Path=/"}), "/next": html}
    )
    with listening() as near, reachable(monkeypatch, site):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{near.getsockname()[1]}")
        fetched(f"{SITE}/")
    assert site.asked == ["/", "/next"]
    assert not any({"cookie", "authorization"} & set(headers) for headers in site.headers)


def test_a_body_is_bounded_packed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(ARTICLE.encode())
    nothing = gzip.compress(b"")
    pages = {
        "/endless": endless,
        "/bomb": bomb,
        "/hollow": hollow,
        "/packed": lambda: Response(packed, media_type="text/html", headers={"Content-Encoding": "gzip"}),
        "/torn": lambda: Response(packed[:-20], media_type="text/html", headers={"Content-Encoding": "gzip"}),
        "/not": lambda: html(**{"Content-Encoding": "gzip"}),
        "/pieces": lambda: Response(packed + nothing, media_type="text/html", headers={"Content-Encoding": "gzip"}),
        "/other": lambda: html(**{"Content-Encoding": "br"}),
    }
    with reachable(monkeypatch, PageSite(pages=pages)):
        assert fetched(f"{SITE}/packed").body == ARTICLE.encode()
        told = {path: refused(f"{SITE}{path}") for path in pages if path != "/packed"}
    assert {path: error.status for path, error in told.items()} == {
        "/endless": 415,
        "/bomb": 415,
        "/hollow": 415,
        "/torn": 502,
        "/not": 502,
        "/pieces": 415,
        "/other": 415,
    }
    assert "larger than 5000000 bytes" in str(told["/endless"])
    assert "larger than 5000000 bytes" in str(told["/bomb"])


def test_one_limit_of_time_is_for_all_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = PageSite(pages={"/drip": drip} | {f"/{n}": redirect(f"/{n + 1}") for n in range(6)})
    with reachable(monkeypatch, slow):
        error = refused(f"{SITE}/drip", timeout=0.5)
        assert (error.status, error.error) == (504, "page_too_slow")
        slow.delay = 0.3
        assert refused(f"{SITE}/0", timeout=1.0).status == 504
    assert len(slow.asked) < 6


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("application/pdf", "it is no page of text but a PDF, which is not read"),
        ("image/png", "of the type image/png"),
        ("application/json", "of the type application/json"),
        ("", "of the type application/octet-stream"),
    ],
)
def test_what_is_no_text_is_refused_by_its_type(monkeypatch: pytest.MonkeyPatch, kind: str, told: str) -> None:
    with reachable(monkeypatch, PageSite(pages={"/": lambda: Response(b"%PDF-1.7", media_type=kind or None)})):
        error = refused(f"{SITE}/")
    assert (error.status, error.error) == (415, "page_unreadable")
    assert told in str(error)


@pytest.mark.parametrize("of", ["page", "robots"])
@pytest.mark.parametrize("told", ["; charset*", "; x*0*", "; x=" + "(" * 5000, "; charset=%00", ";charset"])
def test_an_odd_type_is_read_as_what_it_begins_with(monkeypatch: pytest.MonkeyPatch, told: str, of: str) -> None:
    odd = {"Content-Type": f"text/html{told}"}
    site = PageSite(
        pages={"/": lambda: Response(ARTICLE, headers=odd if of == "page" else {"Content-Type": "text/html"})}
    )
    if of == "robots":
        site.robots = Response("User-agent: *\nDisallow: /not", headers=odd)
    with reachable(monkeypatch, site):
        assert fetched(f"{SITE}/").body == ARTICLE.encode()
        if of == "robots":
            assert refused(f"{SITE}/not").status == 403


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("Text/HTML; Charset=UTF-8", ("text/html", "UTF-8")),
        ("text/plain;charset='koi8-r'", ("text/plain", "koi8-r")),
        ('application/xhtml+xml ; a=b; charset="utf-8"', ("application/xhtml+xml", "utf-8")),
        ("text/html; xcharset=a", ("text/html", "")),
        ("text", ("application/octet-stream", "")),
        ("", ("application/octet-stream", "")),
    ],
)
def test_type_and_encoding_are_read_as_hosts_write_them(told: str, found: tuple[str, str]) -> None:
    assert kind_and_charset({"Content-Type": told}) == found


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (404, 404),
        (410, 404),
        (401, 403),
        (403, 403),
        (451, 403),
        (429, 502),
        (500, 502),
        (503, 502),
        (204, 502),
        (302, 502),
    ],
)
def test_what_a_host_answers_is_told(monkeypatch: pytest.MonkeyPatch, answer: int, status: int) -> None:
    with reachable(monkeypatch, PageSite(pages={"/": lambda: Response(status_code=answer)})):
        error = refused(f"{SITE}/")
    assert error.status == status
    assert str(answer) in str(error)


def test_a_host_that_is_not_there_or_speaks_otherwise_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        names = {"gone.example": [["192.0.1.1"]], "other.example": [[PUBLIC]]}
        names["nobody.example"] = [[]]
        Internet(names, {(PUBLIC, 80): port, (PUBLIC, 443): port}).install(monkeypatch)

        async def all_three(fetch: Callable[[str], Awaitable[Fetched]]) -> list[Any]:
            async def speak() -> None:
                for _ in range(2):
                    connection, _address = await asyncio.get_running_loop().sock_accept(server)
                    connection.send(b"220 mail.example ESMTP\r\n")
                    connection.close()

            server.setblocking(False)
            speaking = asyncio.create_task(speak())
            asked = ("http://gone.example/", "http://other.example/", "https://other.example/")
            outcomes = [(await asyncio.gather(fetch(each), return_exceptions=True))[0] for each in asked]
            await speaking
            return outcomes

        outcomes = run(all_three)
        unknown = refused("http://nobody.example/")
    assert [(error.status, error.error) for error in (*outcomes, unknown)] == [(502, "page_failed")] * 4
    assert "TLS" in str(outcomes[2])
    assert "the name of its host is not known" in str(unknown)


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own_certificate(tmp_path, "site.example"))
    served: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(await reader.read(100))
        writer.close()

    async def ask(fetch: Callable[[str], Awaitable[Fetched]]) -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        Internet({"site.example": [[PUBLIC]]}, {(PUBLIC, 443): port}).install(monkeypatch)
        with pytest.raises(PageError, match="TLS") as caught:
            await fetch("https://site.example/")
        assert caught.value.status == 502
        server.close()

    run(ask)
    assert served in ([], [b""])


def own_certificate(folder: Path, name: str) -> Path:
    """A key, and a certificate signed with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    who, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    unlocked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(unlocked + certificate.public_bytes(Encoding.PEM))
    return path


def test_robots_txt_is_asked_for_once_and_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    site, sent = PageSite(pages={"/a": html, "/private/b": html}, robots="User-agent: *\nDisallow: /private/"), Sent()
    with reachable(monkeypatch, site):

        async def both(fetch: Callable[[str], Awaitable[Fetched]]) -> list[Any]:
            return await asyncio.gather(fetch(f"{SITE}/a"), fetch(f"{SITE}/private/b"), return_exceptions=True)

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

        async def four(fetch: Callable[[str], Awaitable[Fetched]]) -> None:
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

        async def both(fetch: Callable[[str], Awaitable[Fetched]]) -> None:
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

        async def both(fetch: Callable[[str], Awaitable[Fetched]]) -> None:
            async with asyncio.timeout(30):
                await asyncio.gather(*(fetch(f"http://{name}/") for name in names))

        run(both, timeout=60.0)
    assert [site.asked for site in sites] == [["/rules", "/"]] * 2


def test_a_slow_host_keeps_no_place_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = PageSite(pages={f"/{n}": drip for n in range(9)}), PageSite()
    with slow.serving() as slow_port, quick.serving() as quick_port:
        names = {"slow.example": [["198.41.0.5"]], "quick.example": [[PUBLIC]]}
        Internet(names, {("198.41.0.5", 80): slow_port, (PUBLIC, 80): quick_port}).install(monkeypatch)

        async def both(fetch: Callable[[str], Awaitable[Fetched]]) -> None:
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

        async def twice(fetch: Callable[[str], Awaitable[Fetched]]) -> list[Any]:
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

        async def both(fetch: Callable[[str], Awaitable[Fetched]]) -> Fetched:
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
