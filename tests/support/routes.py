"""Every route of the three services and who may call it, from the real apps: `python -m tests.support.routes`.

Who may call is found by asking without a token, so it is what the whole app does, with every layer around the route.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI

from research.config import load_settings
from research.settings import Settings
from services.web.auth import ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE

FILE = Path(__file__).resolve().parents[2] / "docs" / "routes.md"
SECRETS = {ADMIN_TOKEN_VARIABLE: "admin-for-tests", API_KEY_VARIABLE: "key-for-tests", "VLLM_API_KEY": "key-for-tests"}
ADMIN, KEY, OPEN, CLOSED = "admin token", "API key", "everybody", "nobody (404)"
READING = {"GET", "HEAD"}
# They change nothing: searches, a probe. Every other route that is no GET needs a guard.
HARMLESS = {
    ("retriever", path)
    for path in (
        "/search",
        "/open",
        "/retrieve",
        "/queries",
        "/compat/research/search",
        "/compat/research/batch_search",
        "/access",
        "/mcp",
    )
} | {("policy", "/ping")}
LIMITS = {
    "/search": "512 queries of 4,096 characters, `top_k` 100, 16 MB of answer; 429 when the queue is full",
    "/open": "a page of 1,000,000 characters, 16 MB of answer; of a corpus as `/access`; over the web 5 MB received in "
    "10 s, 4,096 pages wait, then 429",
    "/retrieve": "a million hits, in portions of 16 MB, overlong queries cut; waits 60 s for a place, then 503; "
    "msgpack 256 KiB",
    "/queries": "as `/retrieve`",
    "/access": "100 urls, a page of 1,000,000 characters, 16 MB of answer; of a corpus one request at a time, waits "
    "60 s, then 503; over the web 100 requests, with 128 MB of pages, then 503",
    "/compat/research/search": "as `/retrieve`",
    "/compat/research/batch_search": "as `/retrieve`",
    "/mcp": "1,000 JSON values; no stream stays open",
    "/answer": "512 questions of 8,192 characters, 64 at once, lists half of them; 120 s each, a list 1,800 s",
    "/inference/v1/generate": "10,000 JSON values, 1,000 items of lists, and 1,000,000 token ids",
    "/inference/v1/abort_requests": "10,000 JSON values",
    "/v1/completions": "10,000 JSON values, 1,000 items of lists, and 1,000,000 token ids",
    "/v1/responses": "64 items of input, or one per 64 tokens of the context up to 256; 16 JSON values for each",
    "/v1/responses/render": "as `/v1/responses`",
    "/tokenize": "1 MB; 10,000 JSON values, 1,000 items of lists",
    "/detokenize": "1 MB; 10,000 JSON values, 1,000 items of lists, and 1,000,000 token ids",
    "/admin/weights": "one update at a time, 300 s",
    "/admin/weights/broadcast": "as `/admin/weights`",
}


@dataclass(frozen=True, order=True)
class Route:
    """A row: which service, how it is called, who may."""

    service: str
    path: str
    method: str
    who: str

    @property
    def limits(self) -> str:
        if self.method in READING or self.who == CLOSED:
            return ""
        return LIMITS.get(self.path, "10,000 JSON values, 1,000 items of lists" if self.who == KEY else "")


def apps(runs: Path, data: Path) -> dict[str, FastAPI]:
    """The three apps as they are served, but not started. The secrets must be in the environment."""
    settings = load_settings(overrides=[f"paths.runs={runs}", f"paths.data={data}"], environment=False)
    return {"retriever": retriever_app(settings), "policy": policy_app(settings), "trainer": trainer_app(settings)}


def retriever_app(settings: Settings) -> FastAPI:
    from services.retriever.app import create_app
    from services.retriever.retriever import Retriever

    return create_app(Retriever(settings, on_failure=lambda: None))


def trainer_app(settings: Settings) -> FastAPI:
    from services.trainer.api.app import create_app
    from services.trainer.controller import RunController
    from services.trainer.run_dir.run_dir import RunDirectory

    return create_app(RunController(settings), RunDirectory(settings.run_dir))


def policy_app(settings: Settings) -> FastAPI:
    """vLLM's app with our plugin, without an engine."""
    from services.policy.serve import server_arguments, server_environment

    os.environ.update(server_environment(settings))
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = server_arguments(settings, str(settings.paths.data / "models" / "smollm2-135m-instruct"))
    return build_app(make_arg_parser(FlexibleArgumentParser()).parse_args(arguments), ("generate",))


def routes_of(service: str, app: FastAPI) -> list[Route]:
    """The routes of an app, and whom each refuses."""

    async def ask_all() -> list[Route]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return [
                Route(service, path, method, await _who(client, method, path))
                for path, methods in _listed(app)
                for method in sorted(set(methods) - {"HEAD"})
            ]

    return sorted(set(asyncio.run(ask_all())))


def unguarded(routes: Iterable[Route]) -> list[Route]:
    """Routes that may change something and are open, though nobody has said that they are harmless."""
    return [
        route
        for route in routes
        if route.who == OPEN and route.method not in READING and (route.service, route.path) not in HARMLESS
    ]


def _listed(app: FastAPI) -> list[tuple[str, set[str]]]:
    found: list[tuple[str, set[str]]] = []
    for route in app.routes:
        path = str(getattr(route, "path", "?"))
        # What has no methods is a folder of files, or an app of its own.
        found.append((path, set(getattr(route, "methods", None) or {"GET"})))
    return found


async def _who(client: httpx.AsyncClient, method: str, path: str) -> str:
    url = re.sub(r"\{\w+(:\w+)?\}", "x", path)
    answer = await client.request(method, url, json=None if method in READING else {})
    if answer.status_code == 404 and "this route is disabled" in answer.text:
        return CLOSED
    if answer.status_code != 401:
        return OPEN
    return ADMIN if ADMIN_TOKEN_VARIABLE in answer.text else KEY


def written(routes: Iterable[Route]) -> str:
    """The page."""
    rows = "\n".join(
        f"| {each.service} | {each.method} | `{each.path}` | {each.who} | {each.limits} |" for each in routes
    )
    return f"""\
# Every route, and who may call it

Made from the apps by `python -m tests.support.routes --write`. `tests/services/policy/test_routes.py` compares it with
them, and fails for a route that may change something and is open to everybody.

- *admin token*: `RESEARCH_ADMIN_TOKEN`; without it these routes do not exist.
- *API key*: `RESEARCH_API_KEY`; without it everybody may call them.
- Both are asked for before the body is read. *everybody* is whoever reaches the port under a known name
  ([security.md](security.md)).

Limits of every route: those of connections, heads and time in [operations.md](operations.md). Bodies: 4 MB, all that
are unanswered 256 MB (policy: 1 GB); of one prompt 250 kB and 16 bytes for each token of the context
(`model.max_model_len`), of several (`/v1/completions`, batches) 4 MB, of `/admin/weights` 16 MB, of a text to be
tokenized and of `/mcp` 1 MB. On vLLM's routes fields that multiply are bounded, too
([121](adr/121-fields-that-multiply-are-bounded.md)). The trainer reads no body. The figures are the defaults of the
settings.

| Service | Method | Path | Who | Limits of its own |
|---|---|---|---|---|
{rows}
"""


def main(arguments: list[str]) -> None:
    """Print the page, or write it into docs; fail if a route lacks a guard."""
    os.environ.update(SECRETS)
    with tempfile.TemporaryDirectory() as runs:
        found = apps(Path(runs), FILE.parents[1] / "data")
        routes = [route for service, app in found.items() for route in routes_of(service, app)]
    if faults := unguarded(routes):
        sys.exit("\n".join(f"{each.service}: {each.method} {each.path} is open to everybody" for each in faults))
    if "--write" in arguments:
        FILE.write_text(written(routes), encoding="utf-8")
    else:
        print(written(routes), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
