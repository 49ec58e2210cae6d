"""Pages are fetched from public addresses alone, in bounded time and bytes."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from fastapi import Response

from services.retriever.web.pages.fetch import Fetched
from services.retriever.web.pages.kinds import kind_and_charset
from services.retriever.web.pages.refusals import PageError
from tests.support.page_fetching import SITE, Sent, fetched, listening, reachable, refused, run
from tests.support.page_sites import ARTICLE, PUBLIC, Internet, PageSite, bomb, drip, endless, hollow, html, redirect


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
