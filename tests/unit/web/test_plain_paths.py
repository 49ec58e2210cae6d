"""A newline at the end of a path finds no route, in whatever way it is written."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from services.web.plain_paths import PlainPaths
from tests.support.web_server import serving

PATHS = ("/closed", "/closed%0A", "/closed%0a", "/closed%00", "/closed%C2%85", "/%E4%BD%A0")


def app() -> FastAPI:
    made = FastAPI()
    made.add_api_route("/closed", lambda: "reached", methods=["POST"])
    return made


@pytest.mark.parametrize("plain", [True, False])
def test_a_path_with_a_control_character_leads_nowhere(plain: bool) -> None:
    asked = PlainPaths(app()) if plain else app()

    async def scenario() -> dict[str, int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(asked), base_url="http://localhost") as client:
            return {path: (await client.post(path)).status_code for path in PATHS}

    statuses = asyncio.run(scenario())
    assert statuses["/closed"] == 200
    # Without the layer the route is found: otherwise this test would show nothing.
    assert statuses["/closed%0A"] == statuses["/closed%0a"] == (404 if plain else 200)
    assert {statuses[path] for path in PATHS[3:]} == {404}


def test_every_server_of_ours_refuses_it() -> None:
    with serving(app()) as port:
        statuses = [httpx.post(f"http://127.0.0.1:{port}{path}").status_code for path in PATHS]
    assert statuses == [200, 404, 404, 404, 404, 404]
