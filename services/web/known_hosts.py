"""An ASGI layer that refuses requests to a name that is not ours, and from pages of other sites.

A page elsewhere whose name is made to point to this machine (DNS rebinding) would otherwise read what is open here.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from research.settings import Settings
from services.web.errors import HttpError, error_response


def own_names(settings: Settings) -> frozenset[str]:
    """Names under which clients call the services: of the setting, of every endpoint, of this machine."""
    ends = settings.endpoints
    urls = [*ends.retriever_urls, *ends.policy_urls, ends.retriever_url, ends.trainer_url]
    hosts = [settings.retriever.host, settings.policy.host, settings.trainer.host]
    found = [*ends.allowed_hosts, *(urlsplit(url).hostname or "" for url in urls), *hosts]
    return frozenset(name.lower() for name in [*found, socket.gethostname(), socket.getfqdn()] if name)


class KnownHosts:
    """Answers 421 to an unknown `Host` and 403 to an unknown `Origin`, or to what another site's page loads.

    As a `Host` every address is known: a page can make its name point here, but not its address. Anybody may serve a
    page from an address, so as an `Origin` only this machine's and the one that is called are. An `<img>` has no
    `Origin`; browsers say whose it is in `Sec-Fetch-Site`. A link to one of our pages is followed, and a page whose
    `Origin` is known may do what it could always do.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(names)
        # The same few values come with every request; the size bounds what others can make of it.
        self._name_of = lru_cache(maxsize=256)(_name_in)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, error, message = refusal
        await error_response(status, error, message)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        called = {self._name_of(b"//" + value) for name, value in scope["headers"] if name == b"host"}
        if not all(host in self._names or _address(host) for host in called):
            told = "this is not a name of this service; endpoints.allowed_hosts lists those that are"
            return 421, "unknown_host", f"Host: {told}"
        for name, value in scope["headers"]:
            if name == b"origin" and not self._may_ask(self._name_of(value), called):
                return 403, "unknown_origin", "Origin: pages of other sites may not use this service"
            if name == b"sec-fetch-site" and value == b"cross-site" and not (_is_link(scope) or _has_origin(scope)):
                return 403, "unknown_origin", "Sec-Fetch-Site: pages of other sites may not use this service"
        return None

    def _may_ask(self, origin: str, called: Collection[str]) -> bool:
        if origin in self._names or origin in called:
            return True
        address = _address(origin)
        return address is not None and address.is_loopback


def _name_in(url: bytes) -> str:
    """The host of a URL in small letters; nothing if there is none."""
    try:
        return urlsplit(url.decode("ascii")).hostname or ""
    except ValueError:
        return ""


def _is_link(scope: Scope) -> bool:
    """Whether somebody opens what is asked for as a page of its own."""
    told = dict(scope["headers"])
    opened = (told.get(b"sec-fetch-mode"), told.get(b"sec-fetch-dest")) == (b"navigate", b"document")
    return opened and scope["method"] == "GET"


def _has_origin(scope: Scope) -> bool:
    return any(name == b"origin" for name, _ in scope["headers"])


def require_no_page(request: Request) -> None:
    """For a GET that costs something: raise HttpError if a page of another site asks, be it by a link."""
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise HttpError(403, "unknown_origin", "Sec-Fetch-Site: pages of other sites may not search")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
