"""robots.txt as RFC 9309 has it: who is meant, which rule decides, and nothing that takes long."""

from __future__ import annotations

import re
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from services.retriever.web.pages.hosts import Hosts
from services.retriever.web.pages.robots import Robots, TooManyRulesError

US = "research-retriever"


def allows(text: str, path: str) -> bool:
    return Robots.read(text.encode(), US).allows(path)


@pytest.mark.parametrize(
    ("rule", "path", "matches"),
    [
        ("/fish", "/fish", True),
        ("/fish", "/fish/salmon.html", True),
        ("/fish", "/fishheads/yummy.html", True),
        ("/fish", "/Fish.asp", False),
        ("/fish", "/catfish", False),
        ("/fish*", "/fish.php?id=anything", True),
        ("/fish/", "/fish", False),
        ("/*.php", "/folder/filename.php?parameters", True),
        ("/*.php", "/windows.PHP", False),
        ("/*.php$", "/folder/filename.php", True),
        ("/*.php$", "/filename.php?parameters", False),
        ("/*.php$", "/filename.php/", False),
        ("/fish*.php", "/fishheads/catfish.php?parameters", True),
        ("/fish*.php", "/Fish.PHP", False),
        ("/$", "/", True),
        ("/$", "/page.htm", False),
        ("/a*a$", "/a", False),
        ("/a*a$", "/aa", True),
        ("/price$5", "/price$5", True),
        ("*", "/anything", True),
        ("/*?", "/a?b", True),
        ("/é", "/%C3%A9", True),
        ("/%c3%a9", "/%C3%A9", True),
        ("/%7Ejoe", "/~joe", True),
        ("/a%2Fb", "/a/b", False),
        ("/a**b", "/axb", True),
    ],
)
def test_a_rule_matches_as_the_standard_says(rule: str, path: str, matches: bool) -> None:
    assert allows(f"User-agent: *\nDisallow: {rule}", path) is not matches


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        (["Allow: /p", "Disallow: /"], "/page", True),
        (["Allow: /folder", "Disallow: /folder"], "/folder/page", True),
        (["Disallow: /folder", "Allow: /folder"], "/folder/page", True),
        (["Allow: /page", "Disallow: /*.htm"], "/page.htm", False),
        (["Allow: /", "Disallow: /private"], "/private/x", False),
        (["Allow: /$", "Disallow: /"], "/", True),
        (["Allow: /$", "Disallow: /"], "/page.htm", False),
        (["Disallow:"], "/x", True),
        (["Disallow : /x # not this", "crawl-delay: 10"], "/x", False),
    ],
)
def test_the_longest_rule_decides(rules: list[str], path: str, allowed: bool) -> None:
    assert allows("\n".join(["User-agent: *", *rules]), path) is allowed


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", True),
        ("Disallow: /", True),
        ("User-agent: *\nDisallow: /", False),
        ("\ufeffuser-AGENT:*\r\ndisallow:/\r\n", False),
        ("User-agent: *\nDisallow: /\n\nUser-agent: Research-Retriever/2.0\nAllow: /", True),
        ("User-agent: research-retriever\nDisallow: /\n\nUser-agent: *\nAllow: /", False),
        ("User-agent: other\nUser-agent: research-retriever\nDisallow: /", False),
        ("User-agent: research-retriever\nAllow: /\nUser-agent: other\nDisallow: /", True),
        ("User-agent: research\nDisallow: /", True),
        (
            "User-agent: research-retriever\nDisallow: /a\nUser-agent: b\nUser-agent: research-retriever\nDisallow: /",
            False,
        ),
        ("User-agent: *\nDisallow: /\nUser-agent: research-retriever\n", True),
        ("<html><body>not found</body></html>", True),
        ("User-agent: *\n\x00\nDisallow: /\n", False),
    ],
)
def test_the_group_that_names_us_is_ours(text: str, allowed: bool) -> None:
    assert allows(text, "/page") is allowed


@given(
    st.text(alphabet="a*/$", max_size=8).map(lambda rest: f"/{rest}"),
    st.text(alphabet="a/$", max_size=10).map(lambda rest: f"/{rest}"),
)
def test_rules_match_as_regular_expressions_do(rule: str, path: str) -> None:
    ends = rule.endswith("$")
    pattern = ".*".join(map(re.escape, rule.removesuffix("$").split("*"))) + (r"\Z" if ends else "")
    assert allows(f"User-agent: *\nDisallow: {rule}", path) is (re.match(pattern, path) is None)


@given(st.text(max_size=200), st.text(max_size=20))
def test_any_text_can_be_read(text: str, path: str) -> None:
    assert allows(text, path) in (True, False)


def test_a_byte_that_is_no_character_is_itself() -> None:
    robots = Robots.read(b"User-agent: *\nDisallow: /a\xff", US)
    assert robots.allows("/a%EF%BF%BD")
    assert not robots.allows("/a%FF")


@pytest.mark.parametrize(
    "file",
    [
        b"User-agent: *\nDisallow: /" + b"*" * 500_000 + b"b",
        b"User-agent: *\n" + (b"Disallow: /" + b"*a" * 500 + b"b\n") * 500,
        b"User-agent: a\n" * 18_000 + b"Disallow: /\n" * 20_000,
        b"User-agent: *\n" + b"Disallow: /b\n" * 39_000,
        b"User-agent: *\n" + b"".join(b"Disallow: /b%d\n" % n for n in range(19_999)),
        b"User-agent: *\nDisallow: /" + b"\xff" * 500_000,
        b"User-agent: *\nDisallow: /" + b"%7e" * 166_000,
        b"User-agent: *\nDisallow: /" + "é".encode() * 250_000,
        b"\n" * 500_000,
    ],
)
def test_no_file_takes_long_or_more_memory_than_is_said(file: bytes) -> None:
    begun = time.monotonic()
    tracemalloc.start()
    try:
        robots = Robots.read(file, US)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert robots.allows("/" + "a" * 2000)
    # Some tenths of a second here; a regular expression would take years for the first.
    assert time.monotonic() - begun < 15
    assert taken < 1.5 * robots.size


@pytest.mark.parametrize(
    "file",
    [
        b"User-agent: *\n" + b"".join(b"allow:%x\n" % n for n in range(40_000)),
        b"User-agent: *\nDisallow: /" + b"*a" * 250_000 + b"b",
    ],
)
def test_a_file_of_too_many_rules_is_none(file: bytes) -> None:
    with pytest.raises(TooManyRulesError):
        Robots.read(file, US)


def test_what_is_kept_of_all_hosts_is_bounded() -> None:
    file = b"User-agent: *\n" + b"".join(b"Disallow: /%d%s\n" % (n, b"\xff" * 480) for n in range(1000))
    robots, hosts = Robots.read(file, US), Hosts()
    assert robots.size > 1_000_000
    urls = [URL(f"http://{n}.example/") for n in range(100)]
    for url in urls:
        hosts.keep_robots(url, robots)
    kept = [url for url in urls if hosts.robots(url) is not None]
    assert kept == urls[-len(kept) :]
    assert 1 <= len(kept) <= 32_000_000 / robots.size
