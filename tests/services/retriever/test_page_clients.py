"""Clients that open pages by url (ASearcher, RLinf, MCP hosts), and those with a wire of their own (GEM, DSPy).

For each, the text that it builds for its model from our answer is the text that it builds from its own server's. The
readers here were compared with the clients' real code at the commits that docs/retriever.md names.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from mcp import Client

from research.config import load_settings
from services.retriever.build.build import build_index

LONG = " ".join(f"word{number}" for number in range(9000))
# As ASearcher's local knowledge: `contents` and `url`; the last three rows are passages of one page.
ROWS: list[dict[str, Any]] = [
    {"id": "0", "contents": '"Starry Night"\nA painting by Vincent van Gogh.', "url": "http://w/index.php?title=Night"},
    {"id": "1", "contents": "Paris\nThe capital of France, on the Seine.", "url": "http://w/Paris", "year": 1999},
    {"id": "2", "contents": f'"Mars"\nThe fourth planet from the Sun. {LONG}', "url": "http://w/Mars"},
    {"id": "3", "contents": '"Tides"\nThe Moon raises the tides of the sea.', "url": "http://w/Tides"},
    {"id": "4", "contents": '"Tides"\nSpring tides come with a full moon.', "url": "http://w/Tides"},
    {"id": "5", "contents": '"Tides"\nNeap tides are weak.', "url": "http://w/Tides"},
]
QUERIES = ["painting by Vincent van Gogh", "capital of France", "fourth planet from the Sun", "tides of the sea"]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, launch: Any) -> Any:
    data = tmp_path_factory.mktemp("data")
    (data / "models").symlink_to(data_dir / "models")
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    places = [f"paths.data={data}", f"corpus.name={data / 'rows.jsonl'}", "corpus.index=rows"]
    build_index(load_settings(overrides=places), data / "rows.jsonl")
    return launch("retriever", *places)


@pytest.fixture
def client(retriever: Any) -> Iterator[httpx.Client]:
    with retriever.client() as client:
        yield client


def hits_of(client: httpx.Client, query: str, top_k: int) -> list[dict[str, Any]]:
    """Rows of the corpus as the originals' corpora hold them, in our order, which is not what is compared."""
    [hits] = client.post("/search", json={"query": query, "top_k": top_k}).json()["results"]
    return [{"row": ROWS[int(hit["id"])], **hit} for hit in hits]


def asearcher_search_text(answer: Any) -> str:
    """As ASearcher's client reads `/retrieve` and its agent shows it (RLinf shows the same without the tags)."""
    [documents] = [[row["contents"] for row in rows] for rows in answer["result"]]
    [urls] = [[row["url"] for row in rows] for rows in answer["result"]]
    both = enumerate(zip(documents, urls, strict=True), start=1)
    shown = [f"[Doc {n}]({url}):\n" + document[:5000] for n, (document, url) in both]
    return "<information>\n" + ("\n\n".join(shown) or "No search results are found.") + "\n</information>"


def asearcher_page_texts(answer: Any) -> list[str]:
    """As ASearcher's client reads `/access` and its agent shows it, in pages of 25,000 characters."""
    [row] = answer["result"]
    page = ("" if row is None else row["contents"])[:250_000]
    if not page.strip():
        return ["<information>\nNo More Information is Found for this URL.\n</information>"]
    parts = [page[start : start + 25_000] for start in range(0, len(page), 25_000)]
    return [f"<information>\n>>>> Page {n} >>>>\n\n{part}\n</information>" for n, part in enumerate(parts, 1)]


def gem_text(result: list[dict[str, Any]]) -> str:
    """As GEM's tool shows the documents of a query."""
    shown = ""
    for number, item in enumerate(result, start=1):
        title, _, text = item["document"]["contents"].partition("\n")
        shown += f"Doc {number}(Title: {title}) {text}\n"
    return shown


@pytest.mark.parametrize("query", QUERIES)
def test_asearcher_and_rlinf_search_as_in_their_own_server(client: httpx.Client, query: str) -> None:
    original = {"result": [[hit["row"] for hit in hits_of(client, query, 3)]]}
    body = {"queries": [query], "topk": 3, "return_scores": False}
    answer = client.post("/retrieve", json=body).json()
    assert asearcher_search_text(answer) == asearcher_search_text(original)
    assert "](http://w/" in asearcher_search_text(answer)
    assert answer == original


@pytest.mark.parametrize(
    "url",
    ["http://w/Paris", "http://w/Mars", "http://w/index.php/Night", "http://w/index.php?title=Night", "http://no", ""],
)
def test_asearcher_and_rlinf_open_pages_as_in_their_own_server(client: httpx.Client, url: str) -> None:
    pages = {row["url"]: row for row in ROWS}
    original = {"result": [pages.get(url.replace("index.php/", "index.php?title="))]}
    answer = client.post("/access", json={"urls": [url]}).json()
    assert asearcher_page_texts(answer) == asearcher_page_texts(original)
    assert answer == original


def test_a_page_of_several_passages_is_all_of_them_in_their_order(client: httpx.Client) -> None:
    """Their server has whole pages in a second file; here the corpus itself is what can be opened."""
    [tides, nowhere, again] = client.post(
        "/access", json={"urls": ["http://w/Tides", "http://w/nowhere", "http://w/Tides"]}
    ).json()["result"]
    first = '"Tides"\nThe Moon raises the tides of the sea.'
    contents = f"{first}\nSpring tides come with a full moon.\nNeap tides are weak."
    assert tides == again == {"id": "3", "contents": contents, "url": "http://w/Tides"}
    assert nowhere is None


def test_our_own_clients_open_a_passage_by_its_id_and_a_page_by_its_url(client: httpx.Client) -> None:
    passage, page, paris = (
        client.post("/open", json={"id": own_id}).json() for own_id in ("4", "http://w/Tides", "http://w/Paris")
    )
    texts = ["The Moon raises the tides of the sea.", "Spring tides come with a full moon.", "Neap tides are weak."]
    tides = {"title": "Tides", "url": "http://w/Tides", "fields": {}}
    assert passage == {"id": "4", "text": texts[1], **tides}
    assert page == {"id": "3", "text": "\n".join(texts), **tides}
    assert paris["fields"] == {"year": 1999}
    nowhere = client.post("/open", json={"id": "http://w/nowhere"})
    assert (nowhere.status_code, nowhere.json()["error"]) == (404, "page_not_found")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "urls"),
        ({"urls": "http://w/Paris"}, "urls"),
        ({"urls": [1]}, "urls.0"),
        ({"urls": ["u"] * 101}, "at most 100"),
    ],
)
def test_a_wrong_request_for_pages_is_refused_by_name(client: httpx.Client, body: dict[str, Any], named: str) -> None:
    response = client.post("/access", json=body)
    assert response.status_code == 422
    assert named in response.json()["message"]


def test_a_corpus_without_urls_has_no_pages(shared_retriever: Any) -> None:
    with shared_retriever.client() as client:
        assert client.post("/access", json={"urls": ["http://w/Paris", ""]}).json() == {"result": [None, None]}
        assert client.post("/access", json={"urls": []}).json() == {"result": []}


@pytest.mark.parametrize("query", QUERIES)
def test_gem_builds_the_text_that_it_builds_from_its_own_server(client: httpx.Client, query: str) -> None:
    """Its tool sends `query` and reads a list; before July 2025 it sent `queries` and read the first of the lists."""
    original = [{"document": hit["row"], "score": hit["score"]} for hit in hits_of(client, query, 3)]
    asked = msgspec.msgpack.encode({"query": query, "topk": 3, "return_scores": True})
    response = client.post("/retrieve", content=asked)
    assert "content-type" not in response.request.headers
    result = msgspec.msgpack.decode(response.content)["result"]
    assert gem_text(result) == gem_text(original)
    assert gem_text(result).startswith("Doc 1(Title: ")
    before = msgspec.msgpack.encode({"queries": [query], "topk": 3, "return_scores": True})
    assert msgspec.msgpack.decode(client.post("/retrieve", content=before).content)["result"] == [result]
    assert result == original


def test_msgpack_is_answered_in_portions_as_json_is(client: httpx.Client) -> None:
    asked = {"queries": [QUERIES[number % 2] for number in range(1500)] + [""], "topk": 1}
    response = client.post("/retrieve", content=msgspec.msgpack.encode(asked))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(response.content) == client.post("/retrieve", json=asked).json()


@pytest.mark.parametrize("query", QUERIES)
def test_dspy_reads_the_passages_that_it_reads_from_colberts_server(client: httpx.Client, query: str) -> None:
    """DSPy takes `text` as `long_text`; a collection of ColBERT's has `Title | text`."""

    def long_texts(answer: Any, k: int) -> list[str]:
        return [{**passage, "long_text": passage["text"]}["long_text"] for passage in answer["topk"][:k]]

    hits = hits_of(client, query, 3)
    collection = [hit["row"]["contents"].replace("\n", " | ", 1).replace('"', "") for hit in hits]
    original = {"query": query, "topk": [{"text": text} for text in collection]}
    answer = client.get("/api/search", params={"query": query, "k": 3}).json()
    assert long_texts(answer, 3) == long_texts(original, 3)
    assert answer["query"] == query
    assert [(each["pid"], each["rank"], each["score"]) for each in answer["topk"]] == [
        (hit["id"], rank, hit["score"]) for rank, hit in enumerate(hits, start=1)
    ]
    assert sum(each["prob"] for each in answer["topk"]) == pytest.approx(1)
    assert answer["topk"][0]["prob"] > answer["topk"][1]["prob"]


@pytest.mark.parametrize(
    ("asked", "hits"),
    [
        ({"query": "sea"}, 6),
        ({"query": "sea", "k": 0}, 6),
        ({"query": "sea", "k": 10**30}, 6),
        ({"query": " "}, 0),
        ({"query": "sea", "k": -1}, 1),
    ],
)
def test_a_number_of_colberts_passages_is_brought_within_the_limits(
    client: httpx.Client, asked: dict[str, Any], hits: int
) -> None:
    assert len(client.get("/api/search", params=asked).json()["topk"]) == hits


@pytest.mark.parametrize("asked", [{}, {"query": "sea", "k": "many"}, {"k": 3}])
def test_a_wrong_search_of_colberts_is_refused_by_name(client: httpx.Client, asked: dict[str, Any]) -> None:
    response = client.get("/api/search", params=asked)
    assert response.status_code == 422
    assert response.json()["message"].startswith(("query", "k"))


def tool(retriever: Any, name: str, arguments: dict[str, Any]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(60), Client(f"{retriever.url}/mcp") as host:
            return await host.call_tool(name, arguments)

    return asyncio.run(main())


def test_a_connector_opens_what_it_has_found(retriever: Any) -> None:
    """ChatGPT reads one text of JSON: `results` of id, title and url; then `fetch` by id, for text, url, metadata."""
    [content] = tool(retriever, "search", {"query": "capital of France"}).content
    first = json.loads(content.text)["results"][0]
    assert [first[name] for name in ("id", "title", "url")] == ["1", "Paris", "http://w/Paris"]
    [content] = tool(retriever, "fetch", {"id": first["id"]}).content
    page = json.loads(content.text)
    assert page == {
        "id": "1",
        "title": "Paris",
        "text": "The capital of France, on the Seine.",
        "url": "http://w/Paris",
        "metadata": {"year": 1999},
    }
    assert tool(retriever, "fetch", {"id": "1"}).structured_content == page


def test_a_url_fetches_the_whole_page_and_an_id_its_passage(retriever: Any) -> None:
    whole = tool(retriever, "fetch", {"id": "http://w/Tides"}).structured_content
    assert (whole["id"], whole["text"].count("\n")) == ("3", 2)
    assert tool(retriever, "fetch", {"id": "4"}).structured_content["text"] == "Spring tides come with a full moon."
    for unknown in ("http://w/nowhere", "99", "", "é"):
        result = tool(retriever, "fetch", {"id": unknown})
        assert result.is_error
        assert "no passage has this id" in result.content[0].text
