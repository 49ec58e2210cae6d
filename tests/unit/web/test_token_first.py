"""A token is asked for before anything of the body is read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from services.policy.api.guards import variable_of
from services.web.auth import ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE, TokenFirst
from tests.support.web_server import connect, serving

SECRETS = {ADMIN_TOKEN_VARIABLE: "admin-for-tests", API_KEY_VARIABLE: "key-for-tests"}


def echo_app() -> FastAPI:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT"])
    async def echo(path: str, request: Request) -> Any:
        return {"path": path, "bytes": len(await request.body())}

    app.add_middleware(TokenFirst, variable_of=variable_of)
    return app


@pytest.mark.parametrize(
    ("path", "secret"),
    [
        ("/answer", "key-for-tests"),
        ("/answer/", "key-for-tests"),
        ("/tokenize", "key-for-tests"),
        ("/detokenize", "key-for-tests"),
        ("/admin/weights", "admin-for-tests"),
        ("/admin/adapters/x", "admin-for-tests"),
        ("/pause", "admin-for-tests"),
        ("/abort_requests", "admin-for-tests"),
    ],
)
def test_who_has_no_token_is_refused_before_the_body_has_come(
    monkeypatch: pytest.MonkeyPatch, path: str, secret: str
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with serving(echo_app()) as port:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        for given in ("", "Authorization: Basic key\r\n", "Authorization: Bearer wrong\r\n"):
            with connect(port, f"{head}{given}\r\n".encode()) as connection:
                assert connection.recv(1000).startswith(b"HTTP/1.1 401")
        url = f"http://127.0.0.1:{port}{path}"
        answer = httpx.post(url, content=b"x" * 1000, headers={"authorization": f"bearer {secret}"})
        assert answer.json()["bytes"] == 1000


def test_without_a_secret_and_elsewhere_everybody_may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, "admin-for-tests")
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    with serving(echo_app()) as port:
        for path in ("/answer", "/livez", "/info", "/administer", "/ping"):
            assert httpx.post(f"http://127.0.0.1:{port}{path}").status_code == 200
