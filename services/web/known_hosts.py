"""An ASGI layer that refuses requests to a name that is not ours, and from pages of other sites.

A page elsewhere whose name is made to point to this machine (DNS rebinding) would otherwise read what is open here.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
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

    Addresses are always known: a page can make its name point here, but not its address. An `<img>` has no `Origin`;
    browsers say whose it is in `Sec-Fetch-Site`. A link to one of our pages is followed, and a page whose `Origin` is
    known may do what it could always do.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(names)
        # The same few values come with every request; the size bounds what others can make of it.
        self._is_known = lru_cache(maxsize=256)(self._look_up)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, error, message = refusal
        await error_response(status, error, message)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        for name, value in scope["headers"]:
            if name == b"host" and not self._is_known(b"//" + value):
                told = "this is not a name of this service; endpoints.allowed_hosts lists those that are"
                return 421, "unknown_host", f"Host: {told}"
            if name == b"origin" and not self._is_known(value):
                return 403, "unknown_origin", "Origin: pages of other sites may not use this service"
            if name == b"sec-fetch-site" and value == b"cross-site" and not (_is_link(scope) or _has_origin(scope)):
                return 403, "unknown_origin", "Sec-Fetch-Site: pages of other sites may not use this service"
        return None

    def _look_up(self, url: bytes) -> bool:
        try:
            name = urlsplit(url.decode("ascii")).hostname or ""
        except ValueError:
            return False
        return name in self._names or _is_address(name)


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


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
