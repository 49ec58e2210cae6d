"""A stage that hangs for ever, in the real retriever: it says so, tells who waits, and ends when it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.forked import Forked

# As a library that does not return: the stage after the next batch waits for ever.
HANGING = """
import sys, threading
from pathlib import Path
from services.retriever.api import pages
from services.retriever.batching import watch
from {module} import {owner} as owner
pages.READING_SECONDS = 1.0
flag, real = Path(sys.argv.pop(1)), owner.{method}
def hang(*args):
    if flag.exists():
        watch.STUCK_SECONDS = 1.0  # only now: until then a busy machine may be slow
        threading.Event().wait()
    return real(*args)
owner.{method} = hang
from cli.main import main
main()
"""
STAGES = {
    "tokenize": ("services.retriever.encoder.encoder", "Encoder", "tokenize"),
    "encode": ("services.retriever.encoder.encoder", "Encoder", "encode"),
    "search": ("services.retriever.index.search_index", "SearchIndex", "search"),
}
READING = ("services.retriever.index.passage_lookup", "PassageLookup", "with_id")


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hanging(
    stage: str, tmp_path: Path, data_dir: Path, service_environment: dict[str, str], free_port: Callable[[], int]
) -> Iterator[tuple[httpx.Client, Forked, Path]]:
    module, owner, method = STAGES.get(stage, READING)
    script = HANGING.format(module=module, owner=owner, method=method)
    flag, port = tmp_path / "hang", free_port()
    log = tmp_path / "log"
    overrides = [f"paths.data={data_dir}", f"retriever.port={port}"]
    process = Forked(["-c", script, str(flag), "serve", "retriever", *overrides], log, service_environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            until(client, "/readyz", 200)
            yield client, process, flag
    finally:
        process.kill()
        process.wait()


def until(client: httpx.Client, route: str, status: int) -> httpx.Response:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if (response := client.get(route)).status_code == status:
                return response
        time.sleep(0.05)
    raise AssertionError(f"{route} was not {status} within five minutes")


def test_a_stage_that_hangs_is_named_and_the_process_ends_on_sigterm(
    hanging: tuple[httpx.Client, Forked, Path], stage: str
) -> None:
    client, process, flag = hanging
    assert client.post("/search", json={"query": "before"}).status_code == 200
    flag.touch()
    waited = client.post("/search", json={"query": "in it"})
    assert waited.status_code == 500, "who waits is told"
    for route in ("/readyz", "/livez"):
        assert f"{stage} for" in until(client, route, 503).text
    refused = client.post("/search", json={"query": "after"})
    assert refused.status_code == 503
    assert refused.json()["message"].endswith("; restart it")
    process.terminate()
    assert process.wait(timeout=30) == 128 + 15
    assert "was killed" not in flag.with_name("log").read_text(), "it ends in order"


@pytest.mark.parametrize("stage", ["read"], indirect=True)
def test_pages_that_cannot_be_read_are_named(hanging: tuple[httpx.Client, Forked, Path]) -> None:
    client, _, flag = hanging
    flag.touch()
    with pytest.raises(httpx.TimeoutException):
        client.post("/open", json={"id": "1"}, timeout=0.5)
    for route in ("/readyz", "/livez"):
        assert "reading pages for" in until(client, route, 503).text


def test_a_search_under_way_does_not_keep_the_process(hanging: tuple[httpx.Client, Forked, Path], stage: str) -> None:
    client, process, flag = hanging
    flag.touch()
    with suppress(httpx.TransportError):
        client.post("/search", json={"query": "left"}, timeout=0.2)
    process.terminate()
    assert process.wait(timeout=30) == 128 + 15
    assert "was killed" not in flag.with_name("log").read_text(), "it ends in order"
