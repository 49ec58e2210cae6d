"""Passages by their words: BM25 with stemming, for questions whose rare names an encoder does not know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import AssetError
from services.retriever.dense import Positions

LEXICAL = "lexical"

_REPAIR = "build the index again with `research index`"


def _tokenise(texts: list[str]) -> Any:
    import bm25s
    import Stemmer

    return bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)


def write_lexical(directory: Path, texts: Iterable[str]) -> None:
    """Index the texts, in order, into `directory / "lexical"`."""
    import bm25s

    index = bm25s.BM25(method="lucene")
    index.index(_tokenise(list(texts)), show_progress=False)
    index.save(directory / LEXICAL)


class LexicalIndex:
    """BM25 over memory-mapped postings.

    Raises:
        AssetError: the files are missing or broken.
    """

    def __init__(self, directory: Path) -> None:
        import bm25s

        try:
            self._index = bm25s.BM25.load(directory / LEXICAL, mmap=True)
        except (OSError, ValueError, KeyError) as error:
            raise AssetError(f"cannot read {directory / LEXICAL}; {_REPAIR} ({error})") from error
        self.count = int(self._index.scores["num_docs"])

    def search(self, texts: Sequence[str], top_k: int) -> Positions:
        """Find the passages with the best BM25 score: positions [queries, top_k], -1 where no word is shared."""
        found = self._index.retrieve(_tokenise(list(texts)), k=min(top_k, self.count), show_progress=False)
        return np.where(found.scores > 0, found.documents, -1).astype(np.int64)
