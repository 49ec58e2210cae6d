"""Recall against counting by hand, exact search against sorting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.errors import AssetError
from research.passages import Passage
from research.questions.gold import GoldPassage, GoldQuery, load_gold
from services.retriever.build import recall
from services.retriever.build.recall import exact_search, gold_positions, recall_at
from services.retriever.index.passage_store import PassageStore, write_passage_store

MUSIQUE = {
    "question": "Who?",
    "paragraphs": [
        {"title": "A", "paragraph_text": "a text", "is_supporting": True},
        {"title": "A", "paragraph_text": "another", "is_supporting": False},
        {"title": "B", "paragraph_text": "b text", "is_supporting": True},
    ],
}
HOTPOT = {
    "question": "Who?",
    "supporting_facts": [["A", 0], ["A", 1], ["C", 0]],
    "context": [["A", ["a ", "text"]], ["B", ["b text"]], ["C", ["c text"]]],
}
OURS = {"hops": [{"query": "first", "title": "A"}, {"query": "second", "title": "B"}]}


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    text = json.dumps(records) if path.suffix == ".json" else "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(text)
    return path


def test_gold_is_read_in_three_formats(tmp_path: Path) -> None:
    a, b, c = GoldPassage("A", "a text"), GoldPassage("B", "b text"), GoldPassage("C", "c text")
    assert load_gold(written(tmp_path / "m.jsonl", [MUSIQUE])) == [GoldQuery("Who?", frozenset({a, b}))]
    assert load_gold(written(tmp_path / "h.json", [HOTPOT])) == [GoldQuery("Who?", frozenset({a, c}))]
    assert load_gold(written(tmp_path / "o.jsonl", [OURS])) == [
        GoldQuery("first", frozenset({GoldPassage("A")})),
        GoldQuery("second", frozenset({GoldPassage("B")})),
    ]


@pytest.mark.parametrize(
    "record", [{"question": "Who?"}, {**HOTPOT, "context": {"title": ["A"], "sentences": [["a"]]}}]
)
def test_what_has_no_gold_is_refused_by_record(tmp_path: Path, record: dict[str, Any]) -> None:
    with pytest.raises(AssetError, match="record 2"):
        load_gold(written(tmp_path / "q.json", [HOTPOT, record]))


def test_a_missing_passage_counts_as_never_found(tmp_path: Path) -> None:
    write_passage_store(tmp_path, [Passage("0", "A", "another"), Passage("1", "A", "a text")])
    store = PassageStore(tmp_path)
    gold = [GoldQuery("q", frozenset({GoldPassage("A", "a text"), GoldPassage("B", "b text")}))]
    assert gold_positions(store, gold) == [{1, -1}]
    with pytest.raises(AssetError, match="none of the 1 gold passages"):
        gold_positions(store, [GoldQuery("q", frozenset({GoldPassage("Z")}))])


def test_recall_is_the_mean_share_of_gold_among_the_first() -> None:
    ranked, gold = [[3, 1, 2], [5, 6, 7]], [{1, 9}, {7, -1}]
    assert [recall_at(ranked, gold, depth) for depth in (1, 2, 3)] == [0.0, 0.25, 0.5]


def test_exact_search_is_sorting_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    full = rng.standard_normal((50, 8)).astype(np.float16)
    vectors = rng.standard_normal((7, 8)).astype(np.float32)
    wanted = np.argsort(-(vectors @ full.T.astype(np.float32)), axis=1)[:, :5]
    for rows, queries in ((7, 3), (50, 7), (3, 100)):
        monkeypatch.setattr(recall, "_BLOCK_ROWS", rows)
        monkeypatch.setattr(recall, "_BLOCK_QUERIES", queries)
        np.testing.assert_array_equal(exact_search(full, vectors, 5), wanted)
