"""What one request costs the client when many are under way: httpx's own pool against aiohttp beneath httpx.

    python benchmarks/http_client.py --clients 32 128 512

A server that answers after a fixed pause, as a policy would, runs in a process of its own; each client sends three
requests, one after the other, as an episode does. Compare the lines of one run with each other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import time
from collections.abc import Callable

import httpx
import uvicorn
from httpx_aiohttp import AiohttpTransport

REQUESTS, PAUSE = 3, 0.3
ANSWER = json.dumps(
    {"token_ids": list(range(40)), "logprobs": [{"logprob": -0.1234567, "token": "word"}] * 40}
).encode()
QUESTION = {"token_ids": list(range(300))}
TRANSPORTS: dict[str, Callable[[], httpx.AsyncBaseTransport]] = {
    "httpx": lambda: httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None)),
    "httpx over aiohttp": lambda: AiohttpTransport(limits=httpx.Limits(max_connections=0)),
}


async def answer(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """An ASGI application with one answer."""
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(PAUSE)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": ANSWER})


def serve(listener: socket.socket) -> None:
    server = uvicorn.Server(uvicorn.Config(answer, log_level="error", lifespan="off", timeout_keep_alive=60))
    server.run(sockets=[listener])


async def load(url: str, transport: str, clients: int) -> tuple[float, float]:
    """Seconds that all took, and CPU seconds of this process for each request."""
    async with httpx.AsyncClient(base_url=url, transport=TRANSPORTS[transport](), timeout=60) as client:

        async def episode() -> None:
            for _ in range(REQUESTS):
                (await client.post("/", json=QUESTION)).json()

        await episode()
        started, busy = time.perf_counter(), time.process_time()
        await asyncio.gather(*(episode() for _ in range(clients)))
        return time.perf_counter() - started, (time.process_time() - busy) / clients / REQUESTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[32, 128, 512])
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        server = multiprocessing.get_context("fork").Process(target=serve, args=[listener], daemon=True)
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print("| clients | transport | seconds (at least) | CPU ms a request |\n| --- | --- | --- | --- |")
        for clients in arguments.clients:
            for name in TRANSPORTS:
                seconds, cost = asyncio.run(load(url, name, clients))
                print(
                    f"| {clients} | {name} | {seconds:.2f} ({REQUESTS * PAUSE:.1f}) | {cost * 1000:.2f} |", flush=True
                )
        server.terminate()


if __name__ == "__main__":
    main()
