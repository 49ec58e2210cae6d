"""The real retriever: real encoder, real corpus, a real server process."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from research.schemas import ErrorBody, SearchResponse
from tests.support.forked import run


@pytest.fixture(scope="module")
def retriever(shared_retriever: Any) -> Any:
    return shared_retriever


@pytest.fixture(scope="module")
def narrow(launch: Any) -> Any:
    """A retriever that is soon overloaded."""
    return launch("retriever", "retriever.max_batch_queries=1", "retriever.max_queue_queries=8")


@pytest.fixture
def client(retriever: Any) -> Any:
    with retriever.client() as client:
        yield client


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("painter of The Starry Night", "The Starry Night"),
        ("capital city of France", "Paris"),
        ("author of Pride and Prejudice", "Pride and Prejudice"),
        ("fifth planet from the Sun, a gas giant", "Jupiter"),
    ],
)
def test_known_passages_come_first(client: httpx.Client, query: str, title: str) -> None:
    response = client.post("/search", json={"query": query, "top_k": 3})
    assert response.status_code == 200
    [hits] = SearchResponse.model_validate_json(response.content).results
    assert hits[0].title == title
    assert hits[0].text
    assert len(hits) == 3
    assert hits[0].score > hits[1].score >= hits[2].score


def test_several_queries_are_answered_in_order_with_what_each_finds_alone(client: httpx.Client) -> None:
    queries = ["capital city of France", "capital city of Japan", "capital city of France", "moons of Mars"]
    together = client.post("/search", json={"queries": queries, "top_k": 1}).json()["results"]
    alone = [client.post("/search", json={"query": query, "top_k": 1}).json()["results"][0] for query in queries]
    assert [[hit["id"] for hit in hits] for hits in together] == [[hit["id"] for hit in hits] for hits in alone]


def test_the_answer_names_index_and_revision_and_where_the_time_went(client: httpx.Client) -> None:
    answer = client.post("/search", json={"query": "tides"}).json()
    info = client.get("/info").json()
    [served] = info["indexes"]
    assert (answer["index"], answer["revision"]) == (info["index"], served["revision"])
    assert (served["name"], served["passages"], served["structure"]) == (info["index"], 10_033, "Flat")
    assert len(answer["results"][0]) == 5
    assert answer["seconds"]["encode"] > 0
    assert answer["seconds"]["search"] > 0


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"query": ""}, 422, "query:"),
        ({"query": "  \n"}, 422, "query:"),
        ({"query": 7}, 422, "query:"),
        ({}, 422, "give either `query` or `queries`"),
        ({"query": "a", "queries": ["b"]}, 422, "give either `query` or `queries`"),
        ({"queries": []}, 422, "queries:"),
        ({"queries": ["a", ""]}, 422, "queries.1:"),
        ({"queries": ["a"] * 513}, 422, "queries:"),
        ({"query": "a", "topk": 3}, 422, "topk: there is no such field"),
        ({"query": "a", "top_n": 3}, 422, "base URL in /compat/research"),
        ({"query": "a", "top_k": 0}, 422, "top_k:"),
        ({"query": "a", "top_k": 101}, 422, "top_k: 101 is above the limit of 100"),
        ({"query": "x" * 4097}, 422, "query: 4097 characters are above the limit of 4096"),
        ({"queries": ["a", "x" * 4097]}, 422, "queries: 4097 characters"),
        (["a"], 422, "not a JSON object"),
        ({"query": "x" * 4_194_304}, 413, "larger than 4000000 bytes"),
        ({"query": "a", "index": "none"}, 422, "index: 'none' is not served; the retriever serves wikipedia-leads"),
    ],
)
def test_wrong_inputs_are_refused_by_name(client: httpx.Client, body: Any, status: int, named: str) -> None:
    response = client.post("/search", json=body)
    assert response.status_code == status
    assert named in ErrorBody.model_validate_json(response.content).message


def test_broken_json_and_wrong_routes_have_the_same_error_body(client: httpx.Client) -> None:
    as_json = {"content-type": "application/json"}
    for response, status, kind in [
        (client.post("/search", content=b'{"query": ', headers=as_json), 422, "invalid_request"),
        (client.post("/search", content=b'{"query": "\xff"}', headers=as_json), 400, "bad_request"),
        (client.get("/search"), 405, "method_not_allowed"),
        (client.get("/nothing"), 404, "not_found"),
    ]:
        assert response.status_code == status
        assert ErrorBody.model_validate_json(response.content).error == kind


def test_a_very_long_query_within_the_limit_is_cut_not_refused(client: httpx.Client) -> None:
    assert client.post("/search", json={"query": "river " * 682}).status_code == 200


def test_probes_and_metrics(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").json() == {"status": "ready", "detail": ""}
    before = metric(client, "research_retriever_encode_seconds_count")
    client.post("/search", json={"queries": ["a b c", "a b c", "d e f"]})
    assert metric(client, "research_retriever_encode_seconds_count") > before
    assert metric(client, "research_retriever_merged_total") >= 1
    assert 'research_retriever_request_seconds_count{route="/search",status="200"}' in client.get("/metrics").text
    assert "/nothing" not in client.get("/metrics").text


def test_overload_is_429_with_retry_after_and_passes(narrow: Any) -> None:
    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=narrow.url, limits=limits, timeout=30) as client:
            bodies = [{"query": f"question number {number} about rivers"} for number in range(64)]
            return list(await asyncio.gather(*(client.post("/search", json=body) for body in bodies)))

    responses = asyncio.run(flood())
    refused = [response for response in responses if response.status_code == 429]
    assert {response.status_code for response in responses} == {200, 429}
    for response in refused:
        assert int(response.headers["retry-after"]) >= 1
        assert ErrorBody.model_validate_json(response.content).error == "busy"
    with narrow.client() as client:
        assert client.post("/search", json={"query": "and now?"}).status_code == 200
        assert metric(client, "research_retriever_rejected_total") == len(refused)
        assert (
            f'research_retriever_request_seconds_count{{route="/search",status="429"}} {len(refused)}.0'
            in client.get("/metrics").text
        )
        assert metric(client, "research_retriever_queue_depth") == 0


LONG = "river bank " * 60


def eight_queries() -> list[tuple[str, dict[str, Any]]]:
    """One request that fills the queue of `narrow`."""
    return [("/search", {"queries": [f"{number} {time.monotonic()} {LONG}" for number in range(8)]})]


def eight_tool_calls() -> list[tuple[str, dict[str, Any]]]:
    """As many requests of agent hosts."""
    asked = [{"query": f"{number} {time.monotonic()} {LONG}"} for number in range(8)]
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    return [("/mcp", {**call, "params": {"name": "search", "arguments": arguments}}) for arguments in asked]


@pytest.mark.parametrize("asked", [eight_queries, eight_tool_calls])
def test_what_an_absent_client_asked_is_not_encoded(
    narrow: Any, asked: Callable[[], list[tuple[str, dict[str, Any]]]]
) -> None:
    host, port = narrow.url.removeprefix("http://").split(":")
    with narrow.client() as client:
        before = metric(client, "research_retriever_dropped_total")
        deadline = time.monotonic() + 120
        while metric(client, "research_retriever_dropped_total") == before:
            assert time.monotonic() < deadline, "no abandoned query was dropped"
            with ExitStack() as connections:
                # Hanging up right after asking leaves most of the queries waiting.
                for route, content in asked():
                    body = json.dumps(content)
                    head = f"POST {route} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}"
                    accept = "Accept: application/json, text/event-stream\r\nContent-Type: application/json"
                    connection = connections.enter_context(socket.create_connection((host, int(port))))
                    connection.sendall(f"{head}\r\n{accept}\r\n\r\n{body}".encode())


def serve_until_exit(*overrides: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return run(["serve", "retriever", *overrides], environment)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("encoder.query_prefix='ask: '", "was built with another encoder: query_prefix"),
        ("corpus.index=nothing", "there is no index"),
        ("encoder.name='builtin:nothing'", "run `research prepare`"),
        ("encoder.name='nobody/has-this'", "nobody/has-this"),
    ],
)
def test_what_does_not_fit_ends_the_start_with_one_line(
    data_dir: Path, service_environment: dict[str, str], free_port: Callable[[], int], override: str, named: str
) -> None:
    ended = serve_until_exit(
        f"paths.data={data_dir}", f"retriever.port={free_port()}", override, environment=service_environment
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert named in ended.stderr


def test_a_port_in_use_is_named(retriever: Any, data_dir: Path, service_environment: dict[str, str]) -> None:
    taken = retriever.url.rsplit(":", 1)[1]
    ended = serve_until_exit(f"paths.data={data_dir}", f"retriever.port={taken}", environment=service_environment)
    assert ended.returncode == 2
    assert f"retriever.port: cannot listen on 127.0.0.1:{taken}" in ended.stderr


def test_an_encoder_that_cannot_be_loaded_ends_the_process_with_the_reason(
    data_dir: Path, service_environment: dict[str, str], free_port: Callable[[], int], tmp_path: Path
) -> None:
    broken = tmp_path / "data"
    (broken / "models").mkdir(parents=True)
    (broken / "indexes").symlink_to(data_dir / "indexes")
    model = "multilingual-e5-small-enpt"
    (broken / "models" / model).symlink_to(data_dir / "models" / model)
    [graphs] = (data_dir / "models" / "onnx").glob(f"*{model}*")
    (broken / "models" / "onnx" / graphs.name).mkdir(parents=True)
    (broken / "models" / "onnx" / graphs.name / "model-int8.onnx").write_bytes(b"not a graph")
    ended = serve_until_exit(f"paths.data={broken}", f"retriever.port={free_port()}", environment=service_environment)
    assert ended.returncode == 2
    assert "could not be loaded" in ended.stderr.splitlines()[-1]
