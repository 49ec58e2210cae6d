"""Questions with the passages that answer them, to measure a retriever."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.errors import AssetError
from research.questions.paragraphs import joined


@dataclass(frozen=True, slots=True)
class GoldPassage:
    """A passage by its title, and by its text where several share the title."""

    title: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class GoldQuery:
    """A query, and every passage that it should find."""

    text: str
    passages: frozenset[GoldPassage]


def load_gold(path: Path) -> list[GoldQuery]:
    """Read MuSiQue (`paragraphs`), HotpotQA or 2Wiki (`context`), or our own format, where each hop is a query.

    Raises:
        AssetError: the file is missing, or a record has none of these formats.
    """
    try:
        text = path.read_text(encoding="utf-8")
        records = json.loads(text) if path.suffix == ".json" else [json.loads(x) for x in text.split("\n") if x.strip()]
    except (OSError, ValueError) as error:
        raise AssetError(f"cannot read questions {path}: {error}") from error
    queries: list[GoldQuery] = []
    for number, record in enumerate(records, start=1):
        try:
            queries += _gold(record)
        except (KeyError, TypeError, ValueError) as error:
            raise AssetError(f"{path}, record {number}, is not a question with its passages ({error!r})") from error
    queries = [query for query in queries if query.passages]
    if not queries:
        raise AssetError(f"{path} holds no question")
    return queries


def _gold(record: Mapping[str, Any]) -> Iterable[GoldQuery]:
    if "hops" in record:
        return [GoldQuery(hop["query"], frozenset({GoldPassage(hop["title"])})) for hop in record["hops"]]
    if "paragraphs" in record:
        passages = {
            GoldPassage(paragraph["title"], paragraph["paragraph_text"].strip())
            for paragraph in record["paragraphs"]
            if paragraph["is_supporting"]
        }
    else:
        supporting = {title for title, _ in record["supporting_facts"]}
        passages = {
            GoldPassage(title, joined(sentences)) for title, sentences in record["context"] if title in supporting
        }
    return [GoldQuery(record["question"], frozenset(passages))]
