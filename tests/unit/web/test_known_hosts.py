"""Who may be called by which name: pages of other sites reach nothing, whatever their name points to."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from research.config import load_settings
from research.schemas import ErrorBody
from services.trainer.api.app import create_app
from services.trainer.controller import RunController
from services.trainer.run_dir.run_dir import RunDirectory
from services.web.known_hosts import own_names
from tests.support.web_server import serving

OVERRIDES = [
    "endpoints.policy_urls=['http://policy-0.policy:8001']",
    "endpoints.retriever_url=http://node7:8000",
    "retriever.host=data.example",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = load_settings(overrides=[f"paths.runs={tmp_path_factory.mktemp('runs')}", *OVERRIDES], environment=False)
    app = create_app(RunController(settings), RunDirectory(settings.run_dir))
    with serving(app, names=own_names(settings)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8002",
        "trainer:8002",
        "127.0.0.1",
        "10.1.2.3:80",
        "[::1]:8002",
        "policy-0.policy:8001",
        "node7",
        "data.example",
        socket.gethostname(),
    ],
)
def test_own_names_and_all_addresses_are_known(url: str, host: str) -> None:
    assert httpx.get(f"{url}/status", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/status", "/livez", "/", "/nothing"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8002", "localhost.evil.example", "", "[", "a@b c"])
def test_other_names_are_refused_on_every_route(url: str, path: str, host: str) -> None:
    response = httpx.get(url + path, headers={"host": host})
    assert response.status_code == 421
    assert "endpoints.allowed_hosts" in ErrorBody.model_validate_json(response.content).message


@pytest.mark.parametrize("origin", ["http://evil.example", "https://evil.example:8002", "null", "http://6.6.6.6"])
def test_pages_of_other_sites_are_refused(url: str, origin: str) -> None:
    assert httpx.get(f"{url}/status", headers={"origin": origin}).status_code == 403


IMAGE = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
FRAME = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize("headers", [IMAGE, FRAME])
def test_what_pages_of_other_sites_load_is_refused(url: str, headers: dict[str, str]) -> None:
    assert httpx.get(f"{url}/status", headers=headers).status_code == 403
    assert httpx.get(f"{url}/status", headers={**headers, "sec-fetch-site": "same-origin"}).status_code == 200


def test_a_link_from_another_site_is_followed_and_a_form_is_not(url: str) -> None:
    assert httpx.get(f"{url}/", headers=LINK).status_code == 200
    assert httpx.post(f"{url}/", headers=LINK).status_code == 403
    assert httpx.post(f"{url}/", headers={**LINK, "origin": "http://evil.example"}).status_code == 403


def test_a_page_whose_origin_is_known_may_ask_from_another_site(url: str) -> None:
    """To a browser `localhost` and `127.0.0.1` are two sites."""
    fetch = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
    assert httpx.get(f"{url}/status", headers={**fetch, "origin": "http://localhost:3000"}).status_code == 200
    assert httpx.get(f"{url}/status", headers={**fetch, "origin": "http://evil.example"}).status_code == 403


def test_our_own_page_may_ask(url: str) -> None:
    assert httpx.get(f"{url}/status", headers={"origin": url}).status_code == 200
    # By whatever address this machine is called, and from another port of it.
    headers = {"host": "10.1.2.3:8002", "origin": "http://10.1.2.3:3000"}
    assert httpx.get(f"{url}/status", headers=headers).status_code == 200
    assert httpx.get(f"{url}/status", headers={"origin": "http://[::1]:3000"}).status_code == 200


def test_a_name_of_the_setting_is_known() -> None:
    settings = load_settings(overrides=["endpoints.allowed_hosts=['search.example']"], environment=False)
    assert "search.example" in own_names(settings)
    assert "retriever" not in own_names(settings)
