"""Passages by id and by url: as a plain search through the rows finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.passages import CorpusRow, Passage
from services.retriever.index import passage_lookup
from services.retriever.index.passage_lookup import MOST_PAGE_CHARS, PassageLookup
from services.retriever.index.passage_store import PassageStore, write_passage_store


def row(own_id: str, text: str, **fields: Any) -> Passage:
    return CorpusRow(own_id, "T", text, json.dumps(fields)) if fields else Passage(own_id, "T", text)


def lookup(directory: Path, rows: list[Passage]) -> PassageLookup:
    write_passage_store(directory, rows)
    return PassageLookup(PassageStore(directory))


ROWS = [
    row("a", "first", url="http://x/1"),
    row("b", "no url"),
    row("c", "second", url="http://x/1", year=1999),
    row("a", "the id again", url="http://x/2"),
    row("d", "a url within", metadata={"url": "http://x/3"}),
    row("e", "no text", url=7),
]


def test_a_page_is_its_passages_in_the_order_of_the_corpus(tmp_path: Path) -> None:
    found = lookup(tmp_path, ROWS)
    assert [(each["id"], each["text"]) for each in found.with_url("http://x/1")] == [("a", "first"), ("c", "second")]
    assert json.loads(found.with_url("http://x/1")[1]["fields"])["year"] == 1999
    for unknown in ("http://x/3", "http://x/", "", "7"):
        assert found.with_url(unknown) == []


def test_of_an_id_that_stands_twice_the_first_is_found(tmp_path: Path) -> None:
    found = lookup(tmp_path, ROWS)
    assert (found.with_id("a") or {})["text"] == "first"
    assert (found.with_id("e") or {})["text"] == "no text"
    assert found.with_id("f") is None


def test_keys_with_the_same_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage_lookup, "hash", lambda key: 7, raising=False)
    found = lookup(tmp_path, ROWS)
    assert [each["text"] for each in found.with_url("http://x/2")] == ["the id again"]
    assert (found.with_id("c") or {})["text"] == "second"
    assert found.with_id("f") is None


def test_a_store_without_fields_and_an_empty_one_know_no_url(tmp_path: Path) -> None:
    schema = pa.schema([(name, pa.string()) for name in ("id", "title", "text")])
    with pa.OSFile(str(tmp_path / "passages.arrow"), "wb") as out, pa.ipc.new_file(out, schema) as arrow:
        arrow.write_batch(pa.record_batch([pa.array(["0"]), pa.array(["T"]), pa.array(["x"])], schema=schema))
    old = PassageLookup(PassageStore(tmp_path))
    assert old.with_url("http://x") == []
    assert old.with_id("0") == {"id": "0", "title": "T", "text": "x"}
    empty = lookup(tmp_path, [])
    assert empty.with_url("http://x") == []
    assert empty.with_id("0") is None


def test_a_page_ends_at_its_limit(tmp_path: Path) -> None:
    third = "x" * (MOST_PAGE_CHARS // 3 + 1)
    page = lookup(tmp_path, [row(str(number), third, url="u") for number in range(5)]).with_url("u")
    assert sum(len(each["text"]) for each in page) == MOST_PAGE_CHARS
    assert [each["id"] for each in page] == ["0", "1", "2"]


def test_more_rows_than_a_portion_of_the_store_keep_their_places(tmp_path: Path) -> None:
    found = lookup(tmp_path, [row(str(number), "x", url=f"u{number % 5000}") for number in range(10_000)])
    assert [each["id"] for each in found.with_url("u4999")] == ["4999", "9999"]
    assert (found.with_id("9999") or {})["id"] == "9999"


URL = 'ab"\\{:'


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(st.text("abé", max_size=2), st.text(URL, max_size=3) | st.none()), max_size=30))
def test_any_rows_are_found_as_by_reading_all_of_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str | None]]
) -> None:
    passages = [
        row(own_id, str(number), **({} if url is None else {"url": url})) for number, (own_id, url) in enumerate(rows)
    ]
    found = lookup(tmp_path_factory.mktemp("rows"), passages)
    for own_id in {own_id for own_id, _ in rows} | {"zz"}:
        wanted = next((str(number) for number, (other, _) in enumerate(rows) if other == own_id), None)
        assert (found.with_id(own_id) or {}).get("text") == wanted
    for url in {url for _, url in rows if url is not None} | {"zz"}:
        wanted_page = [str(number) for number, (_, other) in enumerate(rows) if other == url]
        assert [each["text"] for each in found.with_url(url)] == wanted_page
