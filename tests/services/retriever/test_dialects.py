"""Clients of other projects against the real retriever: requests as their code sends them, answers as it reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "dialects"

Texts = list[list[tuple[str, str]]]


@pytest.fixture(scope="module")
def retriever(shared_retriever: Any) -> Any:
    return shared_retriever


@pytest.fixture
def client(retriever: Any) -> Iterator[httpx.Client]:
    with retriever.client() as client:
        yield client


def titled(contents: str) -> tuple[str, str]:
    """As Search-R1, SkyRL and slime take `contents` apart."""
    return contents.split("\n")[0].strip('"'), "\n".join(contents.split("\n")[1:])


def numbered(text: str) -> tuple[str, str]:
    """R1-Searcher takes the number off and shows the rest."""
    shown = re.sub(r"^\d+\s+", "", text)
    assert shown != text
    return shown, shown


READERS: dict[str, Callable[[Any], Texts]] = {
    "recall_search": lambda answer: [[titled(document["contents"]) for document in answer]],
    "research_batch_search": lambda answer: [[titled(d["contents"]) for d in documents] for documents in answer],
    "search_r1": lambda answer: [[titled(d["document"]["contents"]) for d in ds] for ds in answer["result"]],
    "verl": lambda answer: [[titled(d["document"]["contents"]) for d in ds] for ds in answer["result"]],
    "skyrl": lambda answer: [[titled(d["document"]["contents"]) for d in ds] for ds in answer["result"]],
    "slime": lambda answer: [[titled(item["contents"]) for item in answer.get("result", [[]])[0]]],
    "r1_searcher": lambda answer: [[numbered(text) for text in texts] for texts in answer["answers"]],
}
FIRST = {"painter of The Starry Night": "The Starry Night", "capital city of France": "Paris"}


@pytest.mark.parametrize("name", READERS)
def test_a_recorded_request_is_answered_as_its_client_reads_it(client: httpx.Client, name: str) -> None:
    recorded = json.loads((FIXTURES / f"{name}.json").read_text())
    response = client.post(recorded["path"], content=json.dumps(recorded["request"]), headers=recorded["headers"])
    assert response.status_code == 200, response.text
    asked = recorded["request"]
    queries = asked.get("queries", asked.get("query"))
    queries = [queries] if isinstance(queries, str) else queries
    wanted = asked.get("topk", asked.get("top_n", asked.get("k")))
    found = READERS[name](response.json())
    assert [len(texts) for texts in found] == [wanted] * len(queries)
    for query, texts in zip(queries, found, strict=True):
        title, text = texts[0]
        assert title.startswith(FIRST[query])
        assert text


def test_scores_come_beside_the_documents_where_they_are_asked_for(client: httpx.Client) -> None:
    body = {"query": "capital city of France", "top_n": 2, "return_score": True}
    documents, scores = client.post("/compat/research/search", json=body).json()
    assert len(documents) == len(scores) == 2
    assert scores[0] > scores[1]
    [[first, second]] = client.post(
        "/retrieve", json={"queries": ["capital city of France"], "topk": 2, "return_scores": True}
    ).json()["result"]
    assert [first["document"], second["document"]] == documents
    batches = client.post("/compat/research/batch_search", json={**body, "query": ["capital city of France"]}).json()
    assert batches[0] == [documents]


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/compat/research/search", {"query": " "}, []),
        ("/compat/research/search", {"query": "", "return_score": True}, [[], []]),
        ("/compat/research/batch_search", {"query": []}, []),
        ("/retrieve", {"queries": ["", "\n"]}, {"result": [[], []]}),
        ("/retrieve", {"queries": []}, {"result": []}),
        ("/retrieve", {"query": ""}, {"result": [[]]}),
        ("/queries", {"queries": [""]}, {"queries": [""], "answers": [[]]}),
    ],
)
def test_a_blank_query_has_no_hits(client: httpx.Client, path: str, body: dict[str, Any], answer: Any) -> None:
    response = client.post(path, json=body)
    assert (response.status_code, response.json()) == (200, answer)


def test_blank_queries_between_others_keep_their_places(client: httpx.Client) -> None:
    body = {"queries": ["", "capital city of France", "  ", "painter of The Starry Night"], "topk": 1}
    first, second, third, fourth = client.post("/retrieve", json=body).json()["result"]
    assert first == third == []
    assert second[0]["contents"].startswith('"Paris"\n')
    assert fourth[0]["contents"].startswith('"The Starry Night"\n')


def test_an_overlong_query_is_cut_because_a_model_wrote_it(client: httpx.Client) -> None:
    body = {"queries": ["capital city of France " + "and so on " * 1000], "topk": 1}
    assert client.post("/retrieve", json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/retrieve", {}, "give either `queries` or `query`"),
        ("/retrieve", {"queries": ["a"], "query": "a"}, "give either"),
        ("/retrieve", {"queries": ["a"], "topk": 0}, "topk"),
        ("/retrieve", {"queries": ["a"], "topk": 101}, "topk: 101 is above the limit of 100"),
        ("/retrieve", {"queries": [1]}, "queries.0"),
        ("/retrieve", {"queries": ["a"] * 4097}, "queries: 4097 queries are above the limit of 4096"),
        ("/compat/research/search", {"top_n": 1}, "query"),
        ("/queries", {"queries": "a"}, "queries"),
    ],
)
def test_what_no_client_sends_is_refused_by_name(
    client: httpx.Client, path: str, body: dict[str, Any], named: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422
    assert named in response.json()["message"]


def test_what_other_fields_a_client_sends_does_not_matter(client: httpx.Client) -> None:
    body = {"query": "capital city of France", "topk": 1, "top_k": 1, "mode": "lexical", "max_words": 10}
    assert client.post("/retrieve", json=body).status_code == 200


def test_overload_is_503_which_these_clients_retry(launch: Any) -> None:
    narrow = launch("retriever", "retriever.max_batch_queries=1", "retriever.max_queue_queries=8")
    with narrow.client() as client:
        response = client.post("/retrieve", json={"queries": [f"query {number}" for number in range(8)], "topk": 1})
        assert response.status_code == 200
        statuses = _many_at_once(narrow.url)
    assert set(statuses) == {200, 503}


def _many_at_once(url: str) -> list[int]:
    import asyncio

    async def main() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            bodies = [{"queries": [f"{number} {part}" for part in range(4)], "topk": 1} for number in range(64)]
            answers = await asyncio.gather(*(client.post("/retrieve", json=body) for body in bodies))
        assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)
        return [answer.status_code for answer in answers]

    return asyncio.run(main())
