"""Connections to pages: to public addresses alone, without cookies, proxies, or anything else that says who we are.

The address is checked where a socket is made for it, so what was checked is what is connected to, however the name was
written and whatever it means a moment later (DNS rebinding).
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver

from services.retriever.web.pages.addresses import is_public

_NO_LIMIT = aiohttp.ClientTimeout(total=None, sock_connect=None)  # whoever asks has one for all of it


class NotPublicError(OSError):
    """An address that is not connected to. All have the same words, so that several are raised as one."""

    def __init__(self) -> None:
        super().__init__("the address is not public")


def open_session(
    user_agent: str, resolver: AbstractResolver, *, public_only: bool, refused: Collection[str] = ()
) -> aiohttp.ClientSession:
    """Connections that are closed after each request; bodies come as they were sent, redirects are not followed.

    Whoever gives the resolver closes it. Must be called in the loop that uses it.

    Args:
        refused: `web.refused_networks`, which are not public.
    """
    networks = [ip_network(each) for each in refused]
    connector = aiohttp.TCPConnector(
        limit=0,
        force_close=True,
        use_dns_cache=False,
        resolver=resolver,
        socket_factory=partial(_public_socket, networks) if public_only else None,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=_NO_LIMIT,
        headers={
            "User-Agent": user_agent,
            "Accept": "text/html, application/xhtml+xml, text/plain;q=0.9",
            "Accept-Encoding": "gzip",
        },
    )


def _public_socket(refused: Collection[IPv4Network | IPv6Network], found: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = found
    if not is_public(address[0], refused):
        raise NotPublicError
    return socket.socket(family, kind, protocol)
