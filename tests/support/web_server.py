"""Apps under our real HTTP server, in a thread; raw connections to it; the worst bodies of a size."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from services.web.server import new_server


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[int]:
    """The port of the app while the block runs."""
    server = new_server(app, "127.0.0.1", 0, quiet=True, **options)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    """A connection on which so much has been sent; reading from it fails after 20 seconds."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(sent)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What arrives until the server closes the connection; nothing if it was reset."""
    received = b""
    try:
        while part := connection.recv(65_536):
            received += part
    except ConnectionResetError:
        pass
    return received


def post(path: str, body: bytes) -> bytes:
    """A request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Accept: application/json, text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def smallest_wrong_items(size: int, fields: list[str]) -> dict[str, bytes]:
    """Bodies of about `size` bytes, by name, each of as many wrong values as there is room for."""
    keys = b",".join(b'"%d":0' % number for number in range(size // 12))
    bodies = {
        "unknown keys": b"{" + keys + b"}",
        "a list": b"[" + b"1," * (size // 2 - 2) + b"1]",
        "lists": b"[" + b"[]," * (size // 3 - 2) + b"1]",
        "depth": b"[" * size,
        "UTF-16": json.dumps([1] * (size // 6)).encode("utf-16"),
    }
    for field in fields:
        start = json.dumps({field: 0}).encode()[:-2]
        bodies[f"{field} of numbers"] = start + b"[" + b"1," * (size // 2 - 20) + b"1]}"
        bodies[f"{field} of negative numbers"] = start + b"[" + b"-1," * (size // 3 - 20) + b"1]}"
        bodies[f"{field} of objects"] = start + b"[" + b"{}," * (size // 3 - 20) + b"1]}"
        bodies[f"{field} of nothing"] = start + b"[" + b'"",' * (size // 3 - 20) + b'""]}'
        bodies[f"{field} with keys"] = start + b"{" + keys + b"}}"
    return bodies


class Watch:
    """Asks `/livez` again and again while the block runs; `longest` is the longest that it waited, in seconds."""

    def __init__(self, url: str) -> None:
        self.longest = 0.0
        self._fault: str | None = None
        self._url = url
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        assert self._fault is None, self._fault

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._done.is_set():
                begun = time.monotonic()
                try:
                    if (status := client.get("/livez").status_code) != 200:
                        self._fault = f"/livez answered {status}"
                except httpx.HTTPError as error:
                    self._fault = f"/livez did not answer: {error!r}"
                self.longest = max(self.longest, time.monotonic() - begun)
                self._done.wait(0.02)
