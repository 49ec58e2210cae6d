"""One id names a request: in the answer, in the error's body, in every log line, and in what it asks of others."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from research.clients import RetrieverClient
from research.errors import ServiceBusyError, ServiceError
from research.schemas import ErrorBody
from services.web.errors import install_error_handlers
from services.web.telemetry import request_ids
from services.web.telemetry.logs import JsonLine
from services.web.telemetry.refusals import shared_metrics
from tests.support.raw_server import RawServer, answer
from tests.support.web_server import serving

HEADER = "X-Request-ID"


class Lines(logging.Handler):
    """The lines that a service would log."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLine())
        self.lines: list[dict[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def logged() -> Iterator[list[dict[str, str]]]:
    root, lines = logging.getLogger(), Lines()
    level = root.level
    root.addHandler(lines)
    root.setLevel(logging.INFO)
    yield lines.lines
    root.removeHandler(lines)
    root.setLevel(level)


def app() -> FastAPI:
    made = FastAPI()
    install_error_handlers(made)

    @made.get("/seen")
    async def seen(request: Request) -> dict[str, str | None]:
        logging.getLogger("ours").info("at work")
        return {"given": request.headers.get(HEADER)}

    @made.get("/theirs")
    async def theirs() -> PlainTextResponse:
        return PlainTextResponse("no", status_code=400)  # as vLLM's routes answer, without a reason of ours

    @made.get("/bug")
    async def bug() -> None:
        raise KeyError("oops")

    @made.get("/busy")
    async def busy() -> None:
        raise ServiceBusyError("the retriever is busy", 429, 7.2)

    @made.get("/search")
    async def search(url: str) -> None:
        async with RetrieverClient(url, retries=0) as client:
            await client.search("q", 5)

    return made


@pytest.fixture
def url() -> Iterator[str]:
    with serving(app()) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("given", ["a", "demo-12.3.0", "0f" * 16, "A.b_c:d-e"])
def test_a_sane_id_is_taken_over_and_is_in_log_and_answer(url: str, given: str, logged: list[dict[str, str]]) -> None:
    answered = httpx.get(f"{url}/seen", headers={HEADER: given})
    assert answered.headers.get_list(HEADER) == [given]
    assert answered.json() == {"given": given}
    assert [line["request"] for line in logged if line["message"] == "at work"] == [given]


@pytest.mark.parametrize(
    "given", ["", "a b", "x" * 97, "a\tb", '{"level":"error"}', "id;ls", "%0a", "é".encode("latin-1")]
)
def test_any_other_is_replaced_and_reaches_nobody(url: str, given: str) -> None:
    answered = httpx.get(
        f"{url}/seen", headers=[(HEADER.encode(), given if isinstance(given, bytes) else given.encode())]
    )
    [name] = answered.headers.get_list(HEADER)
    assert len(name) == 32
    assert name != given
    assert answered.json() == {"given": None}


def test_two_ids_are_none(url: str) -> None:
    answered = httpx.get(f"{url}/seen", headers=[(HEADER, "a"), (HEADER, "b")])
    assert answered.headers[HEADER] not in ("a", "b", "a, b")


def test_each_request_without_one_gets_its_own(url: str) -> None:
    with httpx.Client(base_url=url) as client:  # one connection
        assert len({client.get("/seen").headers[HEADER] for _ in range(5)}) == 5


@pytest.mark.parametrize(
    ("path", "status", "host"),
    [("/nowhere", 404, None), ("/bug", 500, None), ("/busy", 503, None), ("/seen", 421, "evil.example")],
)
def test_every_error_names_its_request(
    url: str, path: str, status: int, host: str | None, logged: list[dict[str, str]]
) -> None:
    headers = {HEADER: f"id-{status}"} | ({"Host": host} if host else {})
    answered = httpx.get(url + path, headers=headers)
    assert answered.status_code == status
    assert answered.headers[HEADER] == f"id-{status}"
    assert ErrorBody.model_validate_json(answered.content).request_id == f"id-{status}"
    lines = [line for line in logged if "was answered with" in line["message"]]
    assert [(line["request"], line["message"]) for line in lines] == [
        (f"id-{status}", f"GET '{path}' was answered with {status}")
    ]
    # uvicorn logs the traceback of a bug in the same task.
    assert {line["request"] for line in logged if "exception" in line} <= {f"id-{status}"}


def test_who_asks_a_busy_service_through_us_is_told_when_to_come_back(url: str) -> None:
    assert httpx.get(f"{url}/busy").headers["Retry-After"] == "8"


def test_the_id_is_handed_down_and_is_in_the_message(url: str) -> None:
    async def run() -> tuple[httpx.Response, str]:
        server = RawServer(lambda _: answer({"error": "no"}, 400))
        async with server.serving() as below, httpx.AsyncClient() as client:
            found = await client.get(f"{url}/search", params={"url": below}, headers={HEADER: "mine"})
            return found, server.asked[0].headers["x-request-id"]

    answered, below = asyncio.run(run())
    assert below == "mine"
    assert answered.status_code == 503
    assert "request mine" in answered.json()["message"]


def test_a_client_without_a_request_makes_an_id() -> None:
    async def run() -> str:
        server = RawServer(lambda _: answer({}, 400))
        async with server.serving() as below, RetrieverClient(below, retries=0) as client:
            with pytest.raises(ServiceError) as caught:
                await client.search("q", 5)
        name = server.asked[0].headers["x-request-id"]
        assert f"request {name}" in str(caught.value)
        return name

    assert len(asyncio.run(run())) == 32


def test_a_flood_of_refusals_does_not_fill_the_log(
    url: str, logged: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_ids, "_SECONDS", 1000.0)  # sixty requests may take longer than ten seconds
    with httpx.Client(base_url=url) as client:
        for _ in range(60):
            client.get("/nowhere")
        assert sum("was answered with" in line["message"] for line in logged) == request_ids._LINES
        client.get("/busy")
        assert any(line["message"] == "GET '/busy' was answered with 503" for line in logged), "refusals hide a failure"
        monkeypatch.setattr(request_ids, "_SECONDS", 0.0)
        client.get("/nowhere")
    assert any(line["message"] == "40 more refused or failed requests were not logged" for line in logged)


def refused(reason: str = "", status: int = 0) -> float:
    """So many by this reason, or all."""
    start = "research_refused_requests_total{"
    if reason:
        start += f'reason="{reason}",status="{status}"}} '
    return sum(float(line.split()[-1]) for line in shared_metrics().decode().splitlines() if line.startswith(start))


def test_refusals_are_counted_by_reason_and_never_by_what_was_sent(url: str) -> None:
    names = [("not_found", 404), ("internal_error", 500), ("retriever_busy", 503), ("unknown_host", 421)]
    names.append(("bad_request", 400))
    before, all_before = [refused(*name) for name in names], refused()
    for path in ("/secret-of-mine", "/bug", "/busy", "/theirs", "/seen"):
        httpx.get(url + path)
    httpx.get(f"{url}/seen", headers={"Host": "evil.example"})
    assert [refused(*name) for name in names] == [count + 1 for count in before]
    assert refused() == all_before + len(names), "a refusal was counted twice"
    assert b"secret-of-mine" not in shared_metrics()
    assert b"evil" not in shared_metrics()
