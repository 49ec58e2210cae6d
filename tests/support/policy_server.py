"""A policy server with vLLM's token-in/token-out routes and nothing behind them: real HTTP, made-up tokens.

It fails as servers do: it can be slow, hang, refuse, die and come back at the same address with its base weights.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

from research.forms.grammar import SEARCH_END
from services.web.server import Server

TOKEN_LOGPROB = -0.5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class PolicyServer:
    """Samples one id after the other, then ends the turn.

    Attributes:
        seconds_per_token: how fast.
        tokens: length of a turn, unless `max_tokens` ends it before.
        search: the ids of a turn that searches, in place of made-up ones.
        version: of the weights that it says it samples from.
        broken: it says that it is not ready.
        hangs: it takes connections and answers nothing.
        prompts: what it was asked to continue.
        ended: names of generations that it was told to end.
        checks: how often it was asked whether it is ready.
    """

    port: int = field(default_factory=free_port)
    seconds_per_token: float = 0.0
    tokens: int = 4
    version: str = "1"
    broken: bool = False
    hangs: bool = False
    search: list[int] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    checks: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve until the block ends; then drop what is under way, as a killed process does."""
        app = FastAPI()
        app.get("/readyz")(self._readyz)
        app.post("/inference/v1/generate")(self._generate)
        app.post("/inference/v1/abort_requests")(self._abort)
        server = Server(uvicorn.Config(app, port=self.port, log_level="critical", lifespan="off"))
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 (uvicorn tells nobody)
            await asyncio.sleep(0.005)
        try:
            yield
        finally:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            server.should_exit = server.force_exit = True
            await serving

    async def asked(self, count: int = 1) -> None:
        """Return once it has been asked for so many generations."""
        while len(self.prompts) < count:  # noqa: ASYNC110 (it is simpler than an event per count)
            await asyncio.sleep(0.01)

    async def _readyz(self) -> Response:
        self.checks += 1
        await self._hang()
        return Response(status_code=503 if self.broken else 200)

    async def _abort(self, request: Request) -> Response:
        await self._hang()
        self.ended |= set((await request.json())["request_ids"])
        return Response()

    async def _generate(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        self.prompts.append(body["token_ids"])
        await self._hang()
        name = f"generate-tokens-{body['request_id']}"
        ids: list[int] = []
        length, limit = len(self.search) or self.tokens, body["sampling_params"]["max_tokens"]
        while len(ids) < min(length, limit) and name not in self.ended:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told_to_end(name), self.seconds_per_token)
                break
            ids.append(self.search[len(ids)] if self.search else 20 + len(ids))
        reason = "abort" if name in self.ended else "length" if len(ids) < length else "stop"
        return {
            "choices": [
                {
                    "token_ids": ids,
                    "logprobs": {"content": [{"logprob": TOKEN_LOGPROB} for _ in ids]},
                    "weight_versions": [{"start": 0, "end": len(ids), "version": self.version}],
                    "finish_reason": reason,
                    "stop_reason": SEARCH_END if self.search else None,
                }
            ]
        }

    async def _told_to_end(self, name: str) -> None:
        while name not in self.ended:  # noqa: ASYNC110 (a client ends it)
            await asyncio.sleep(0.01)

    async def _hang(self) -> None:
        while self.hangs:  # noqa: ASYNC110 (a test ends it)
            await asyncio.sleep(0.01)
