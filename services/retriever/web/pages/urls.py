"""The address of a page: of which form it may be, and which hosts near us may be asked."""

from __future__ import annotations

from collections.abc import Collection

from yarl import URL

from services.retriever.web.pages.refusals import no_page

_MOST_CHARS = 2000


def page_url(asked: str, private_hosts: Collection[str], base: URL | None = None) -> URL:
    """The address in its normal form, with a path, and without what is only for the reader (`#…`).

    Args:
        private_hosts: `web.private_hosts`, which may have any port.
        base: the page that named it, if it may be relative.

    Raises:
        PageError: 422 if no page can have it.
    """
    if len(asked) > _MOST_CHARS:
        raise no_page(f"the address has {len(asked)} characters, of {_MOST_CHARS} that it may have")
    try:
        url = URL(asked.strip())
        url = url if base is None else base.join(url)
        port = url.port
    except ValueError as error:
        raise no_page("it is no address of a page") from error
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise no_page("it is no address of a page: http://… or https://…")
    if url.raw_user is not None or url.raw_password is not None:
        raise no_page("an address with a name or a password is not opened")
    if not url.is_default_port() and not is_private_host(url, private_hosts):
        raise no_page(f"pages are not opened at port {port}; web.private_hosts names hosts with theirs")
    return url.with_path(url.raw_path, encoded=True, keep_query=True)


def is_private_host(url: URL, private_hosts: Collection[str]) -> bool:
    """Whether the host, with its port unless that is the usual one, is among those that need no public address.

    With the usual one it may be, too: then at that port alone.
    """
    host = url.raw_host or ""
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{url.port}" in private_hosts or (url.is_default_port() and name in private_hosts)
