"""No form of an address that is not of the public internet passes, whatever it is wrapped in."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from research.config import load_settings
from research.errors import ConfigurationError
from services.retriever.web.pages.addresses import is_public
from services.retriever.web.pages.refusals import PageError
from services.retriever.web.pages.urls import is_private_host, page_url

PUBLIC_4 = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.0", "192.167.255.255", "223.255.255.255"]
NEAR_4 = [
    "0.0.0.0",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",  # Alibaba's metadata
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's
    "169.254.169.254",  # most clouds'
    "169.254.170.2",  # Amazon's for containers
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",  # Oracle's
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
NEAR_6 = [
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",  # Amazon's metadata
    "ff02::1",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "5f00::1",
    "64:ff9b:1::1",
    "2606:4700::1111%1",
]
any_4 = st.ip_addresses(v=4)
near_4 = st.sampled_from(NEAR_4).map(IPv4Address)


def test_the_public_internet_is_public() -> None:
    assert all(map(is_public, [*PUBLIC_4, "2606:4700:4700::1111", "2a00:1450:4001:800::200e", "64:ff9b::8.8.8.8"]))


@pytest.mark.parametrize("address", [*NEAR_4, *NEAR_6, "", "localhost", "1.1.1", "1.1.1.1 "])
def test_what_is_near_us_is_not(address: str) -> None:
    assert not is_public(address)


# `ipaddress` calls these public in some releases, or in all.
@given(any_4)
@example(IPv4Address("192.88.99.1"))
@example(IPv4Address("224.0.0.1"))
def test_what_python_knows_as_special_is_not_public(address: IPv4Address) -> None:
    if address.is_private or address.is_multicast or address.is_reserved or not address.is_global:
        assert not is_public(str(address))


@given(st.ip_addresses(v=6) | st.integers(0, 2**16).map(lambda low: IPv6Address(0xFE80 << 112 | low)))
def test_nor_is_what_python_knows_as_special_in_ipv6(address: IPv6Address) -> None:
    special = address.is_private or address.is_multicast or address.is_reserved or address.is_link_local
    if (special or not address.is_global or address.is_site_local) and int(address) not in NAT64:
        assert not is_public(str(address))


NAT64 = range(int(IPv6Address("64:ff9b::")), int(IPv6Address("64:ff9b::ffff:ffff")) + 1)


@given(near_4 | any_4.filter(lambda address: not is_public(str(address))), st.integers(0, 2**64 - 1))
def test_no_form_of_ipv6_carries_an_address_near_us(near: IPv4Address, more: int) -> None:
    number = int(near)
    forms = {
        "mapped": 0xFFFF << 32 | number,
        "compatible": number,
        "translated (SIIT)": 0xFFFF << 48 | number,
        "NAT64": int(IPv6Address("64:ff9b::")) | number,
        "local NAT64": int(IPv6Address("64:ff9b:1::")) | number,
        "6to4": 0x2002 << 112 | number << 80 | more,
        "Teredo server": 0x20010000 << 96 | number << 64 | more,
        "Teredo client": 0x20010000 << 96 | (more >> 32) << 64 | (number ^ 0xFFFF_FFFF),
    }
    passed = [name for name, form in forms.items() if is_public(str(IPv6Address(form)))]
    assert not passed
    assert not is_public(f"::ffff:{near}")


@given(any_4)
def test_nat64_is_what_it_carries(address: IPv4Address) -> None:
    assert is_public(f"64:ff9b::{address}") == is_public(str(address))


def test_a_network_of_ours_is_not_public_in_any_form() -> None:
    ours = [ip_network("93.184.216.0/24"), ip_network("2a02:8071:1234::/48")]
    for address in ("93.184.216.34", "64:ff9b::5db8:d822", "2a02:8071:1234::7"):
        assert is_public(address)
        assert not is_public(address, ours)
    assert is_public("93.184.217.34", ours)
    assert is_public("2a02:8071:1235::7", ours)


@given(st.ip_addresses(v=6))
def test_each_way_of_writing_an_address_is_the_same(address: IPv6Address) -> None:
    assert is_public(str(address)) == is_public(address.exploded) == is_public(address.exploded.upper())
    assert ip_address(address.exploded) == address


@pytest.mark.parametrize(
    ("asked", "url"),
    [
        (" HTTP://Site.Example ", "http://site.example/"),
        ("http://site.example?a=%c3%a9", "http://site.example/?a=%C3%A9"),
        ("https://site.example:443/a?b=1#c", "https://site.example/a?b=1"),
        ("http://site.example:80/", "http://site.example/"),
        ("https://Bücher.example/é", "https://xn--bcher-kva.example/%C3%A9"),
        ("http://intra.example:8080/", "http://intra.example:8080/"),
        ("http://[::1]:8081/", "http://[::1]:8081/"),
        ("http://[::1]/", "http://[::1]/"),
    ],
)
def test_an_address_has_one_form(asked: str, url: str) -> None:
    assert str(page_url(asked, ["intra.example:8080", "[::1]:8081"])) == url


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "site.example",
        "//site.example/",
        "ftp://site.example/",
        "file:///etc/passwd",
        "gopher://site.example/",
        "javascript:alert(1)",
        "data:text/html,x",
        "http://",
        "http:///a",
        "http://user@site.example/",
        "http://user:password@site.example/",
        "http://:password@site.example/",
        "http://site.example:8080/",
        "https://site.example:80/",
        "http://site.example:443/",
        "http://site.example:99999/",
        "http://site.example:x/",
        "http://[::1",
        "http://intra.example:8081/",
        "http://site.example/" + "a" * 2000,
    ],
)
def test_what_cannot_be_a_page_is_refused(asked: str) -> None:
    with pytest.raises(PageError) as caught:
        page_url(asked, ["intra.example:8080"])
    assert (caught.value.status, caught.value.error) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("named", "private", "others"),
    [
        ("Wiki_a.corp", ["http://wiki_a.corp/", "https://WIKI_A.corp/b"], ["http://wiki_a.corp:8080/"]),
        ("wiki.corp:8080", ["http://wiki.corp:8080/", "https://wiki.corp:8080/"], ["http://wiki.corp/"]),
        ("wiki.corp:80", ["http://wiki.corp/", "http://wiki.corp:80/"], ["https://wiki.corp/"]),
        ("wiki.corp:443", ["https://wiki.corp/"], ["http://wiki.corp/"]),
        ("10.0.0.7", ["http://10.0.0.7/"], ["http://10.0.0.70/"]),
        ("[FD00:0::1]", ["http://[fd00::1]/", "https://[fd00:0:0::1]/"], ["http://[fd00::1]:81/"]),
        ("[fd00:0::1]:81", ["http://[fd00::1]:81/"], ["http://[fd00::1]/"]),
        ("[::ffff:10.0.0.7]", ["http://[::ffff:10.0.0.7]/", "http://[::ffff:a00:7]/"], ["http://10.0.0.7/"]),
    ],
)
def test_a_host_that_is_named_is_found_however_it_is_written(named: str, private: list[str], others: list[str]) -> None:
    settings = load_settings(overrides=[f"web.private_hosts={json.dumps([named])}"], environment=False)
    hosts = settings.web.private_hosts
    assert [is_private_host(page_url(url, hosts), hosts) for url in private] == [True] * len(private)
    assert not any(is_private_host(URL(url), hosts) for url in others)


@pytest.mark.parametrize("named", ["", "a b", "http://a", "a/b", "a:0", "a:080", "[fd00:::1]", "[1.2.3.4]", "fd00::1"])
def test_what_names_no_host_is_refused(named: str) -> None:
    with pytest.raises(ConfigurationError, match="private_hosts"):
        load_settings(overrides=[f"web.private_hosts={json.dumps([named])}"], environment=False)


@given(st.text(max_size=60) | st.text(alphabet="htps:/@[]%.?#\\\\0 1a", max_size=40).map(lambda rest: f"http://{rest}"))
def test_any_text_is_an_address_or_refused(asked: str) -> None:
    try:
        url = page_url(asked, [])
    except PageError:
        return
    assert url.scheme in ("http", "https")
    assert url.port in (80, 443)
    assert url.raw_host
    assert page_url(str(url), []) == url
