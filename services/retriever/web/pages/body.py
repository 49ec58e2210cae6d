"""The body of an answer: bounded as it is received, and again as it is unpacked."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import aiohttp

from services.retriever.web.pages.refusals import failed, unreadable

# The longest article of an encyclopedia has two million; what is longer is rarely one page of text.
MOST_BYTES = 5_000_000
_TOO_LARGE = f"the page is larger than {MOST_BYTES} bytes"
_GZIP = 16 + zlib.MAX_WBITS


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """All of a body.

    Raises:
        PageError: 415 if it is longer than `MOST_BYTES`, packed or not, or packed otherwise than we asked; 502 if it
            broke off.
    """
    body = bytearray()
    async for part in _unpacked(response, MOST_BYTES):
        body += part
        if len(body) > MOST_BYTES:
            raise unreadable(_TOO_LARGE)
    return bytes(body)


async def read_start(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The first bytes of a body."""
    body = bytearray()
    async for part in _unpacked(response, most):
        body += part
        if len(body) >= most:
            break
    return bytes(body[:most])


async def _unpacked(response: aiohttp.ClientResponse, most: int) -> AsyncIterator[bytes]:
    """Parts, none longer than one byte more than `most`."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip"):
        raise unreadable(f"the page is packed as {coding[:40]!r}, which was not asked for")
    gzip = zlib.decompressobj(_GZIP) if "gzip" in coding else None
    received = 0
    async for part in response.content.iter_any():
        received += len(part)
        # A packed body may go on without end and hold nothing.
        if received > MOST_BYTES:
            raise unreadable(_TOO_LARGE)
        if gzip is None:
            yield part
            continue
        try:
            yield gzip.decompress(part, most + 1)
        except zlib.error as error:
            raise failed("the page is not packed as it says") from error
        if gzip.unused_data:
            raise unreadable("the page is packed in several pieces")
    if gzip is not None and received and not gzip.eof:
        raise failed("the page broke off")
