"""Clients of other projects against the real retriever: requests as their code sends them, answers as it reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from research.config import load_settings
from services.retriever.build.build import build_index

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
    found = re.fullmatch(r"Title: (.*?) Text:  (.*)", shown, re.DOTALL)
    assert found, shown
    return found[1], found[2]


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


def rllm_text(answer: Any) -> str:
    """What the tool of rLLM's search example (95c1c41) shows to its model."""
    found = answer.get("results", [])
    shown = []
    for number, result in enumerate(found[:10], start=1):
        document = result.get("document", {})
        contents = document.get("contents", "")
        contents = contents[:300] + "..." if len(contents) > 300 else contents
        shown.append(
            f"[Document {number}] (ID: {document.get('id')}, Score: {result.get('score', 0.0):.3f})\n{contents}\n"
        )
    return "\n".join(shown) or "No relevant documents found for the query."


def rllm_research_text(answer: Any) -> str:
    """What rLLM's fully_async/deepresearch (9beb6e0) reads: id, content and score of each result."""
    return "\n".join(f"{result['id']} {result['score']:.3f} {result['content']}" for result in answer["results"])


@pytest.mark.parametrize("count", ["top_k", "k"])
def test_rllm_builds_the_text_that_it_builds_from_its_own_server(client: httpx.Client, count: str) -> None:
    query = "painter of The Starry Night"
    hits = client.post("/search", json={"query": query, "top_k": 7}).json()["results"][0]
    documents = [{"id": hit["id"], "contents": f'"{hit["title"]}"\n{hit["text"]}'} for hit in hits]
    original = {
        "query": query,
        "method": "e5",
        "results": [
            {"document": document, "score": hit["score"], "id": hit["id"], "content": document["contents"]}
            for hit, document in zip(hits, documents, strict=True)
        ],
        "num_results": 7,
    }
    answer = client.post("/retrieve", json={"query": query, count: 7}).json()
    assert rllm_text(answer) == rllm_text(original)
    assert "The Starry Night" in rllm_text(answer)
    assert rllm_research_text(answer) == rllm_research_text(original)
    assert answer["num_results"] == 7
    assert client.get("/health").status_code == 200


def test_r1_searcher_builds_the_text_that_it_builds_from_its_own_corpus(client: httpx.Client) -> None:
    """A line of its corpora is `ID\\tTitle: X Text:  Y`; the client takes the id off and numbers what is left."""
    query = "painter of The Starry Night"
    hits = client.post("/search", json={"query": query, "top_k": 3}).json()["results"][0]
    lines = [f"{hit['id']}\tTitle: {hit['title']} Text:  {hit['text']}" for hit in hits]
    answer = client.post("/queries", json={"queries": [query], "k": 3}).json()

    def shown(texts: list[str]) -> str:
        return "\n".join(f"({n})" + re.sub(r"^\d+\s+", "", text) for n, text in enumerate(texts, start=1))

    assert shown(answer["answers"][0]) == shown(lines)
    assert shown(lines).startswith("(1)Title: The Starry Night Text:  ")


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
        ("/retrieve", {"queries": [1]}, "queries.0"),
        ("/retrieve", {"queries": ["a"], "topk": "many"}, "topk"),
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
    assert len(client.post("/retrieve", json=body).json()["result"][0]) == 1


@pytest.mark.parametrize(("wanted", "hits"), [(0, 10), (-3, 1), (1, 1), (101, 100), (10**30, 100)])
def test_a_number_of_hits_that_a_model_wrote_is_brought_within_the_limits(
    client: httpx.Client, wanted: int, hits: int
) -> None:
    body = {"query": "capital city of France", "top_n": wanted}
    response = client.post("/compat/research/search", json=body)
    assert response.status_code == 200, response.text
    assert len(response.json()) == hits


def test_more_queries_than_the_queue_holds_are_answered_in_their_order(client: httpx.Client) -> None:
    """ReSearch's own evaluation sends all questions of a benchmark at once: 7,405 of HotpotQA."""
    known = {"capital city of France": "Paris", "painter of The Starry Night": "The Starry Night"}
    queries = [*known, *(f"river number {number % 50}" for number in range(7403))]
    queries[7000] = "capital city of France"
    body = {"query": queries, "top_n": 5, "return_score": True}
    documents, scores = client.post("/compat/research/batch_search", json=body, timeout=120).json()
    assert [len(each) for each in documents] == [len(each) for each in scores] == [5] * 7405
    assert documents[7000] == documents[0]
    assert documents[50] == documents[100] != documents[51]
    for query, title in known.items():
        assert titled(documents[queries.index(query)][0]["contents"])[0].startswith(title)


def test_who_comes_to_a_busy_server_waits_for_a_place(launch: Any) -> None:
    """Search-R1 and slime read no status: of a refusal they make an empty result, or end."""
    narrow = launch("retriever", "retriever.max_batch_queries=1", "retriever.max_queue_queries=8")
    with narrow.client() as client:
        response = client.post("/retrieve", json={"queries": [f"query {number}" for number in range(30)], "topk": 1})
        assert [len(hits) for hits in response.json()["result"]] == [1] * 30
        assert set(_many_at_once(narrow.url)) == {200}


def _many_at_once(url: str) -> list[int]:
    import asyncio

    async def main() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            bodies = [{"queries": [f"{number} {part}" for part in range(4)], "topk": 1} for number in range(16)]
            answers = await asyncio.gather(*(client.post("/retrieve", json=body) for body in bodies))
        return [answer.status_code for answer in answers]

    return asyncio.run(main())


ROWS: list[dict[str, Any]] = [
    {"id": "1", "contents": "Starry Night\nA painting by Vincent van Gogh.", "url": "http://corpus/night"},
    {"id": "2", "title": "Paris", "text": "The capital of France.", "url": "http://corpus/paris", "year": 1999},
]


@pytest.fixture(scope="module")
def rows_served(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, launch: Any) -> Any:
    """A retriever over a corpus whose rows have further fields, and contents that are not in wiki-18's form."""
    data = tmp_path_factory.mktemp("data")
    (data / "models").symlink_to(data_dir / "models")
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    places = [f"paths.data={data}", f"corpus.name={data / 'rows.jsonl'}", "corpus.index=rows"]
    build_index(load_settings(overrides=places), data / "rows.jsonl")
    return launch("retriever", *places)


def test_a_row_of_the_corpus_is_answered_whole(rows_served: Any) -> None:
    """ASearcher, RLinf and AReaL read `url`; clients print the first line of `contents` as it is."""
    with rows_served.client() as client:
        body = {"queries": ["painting by Vincent van Gogh", "capital of France"], "topk": 1, "return_scores": False}
        [[night], [paris]] = client.post("/retrieve", json=body).json()["result"]
        assert night == {"id": "1", "contents": ROWS[0]["contents"], "url": "http://corpus/night"}
        assert paris == {
            "id": "2",
            "contents": '"Paris"\nThe capital of France.',
            "url": "http://corpus/paris",
            "year": 1999,
        }
        [hit] = client.post("/search", json={"query": "capital of France", "top_k": 1}).json()["results"][0]
        assert hit["fields"] == {"url": "http://corpus/paris", "year": 1999}
        assert (hit["title"], hit["text"]) == ("Paris", "The capital of France.")
