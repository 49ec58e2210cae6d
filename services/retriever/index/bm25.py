"""Passages by their words: BM25 with stemming, for questions whose rare names an encoder does not know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import AssetError
from services.retriever.index.file_sums import advice
from services.retriever.index.vector_index import Positions

BM25_DIRECTORY = "lexical"


# Building holds all token ids as Python lists, about 1 KB per passage.
MAX_BM25_PASSAGES = 5_000_000


def write_bm25(directory: Path, texts: Iterable[str]) -> None:
    """Index the texts, in order, into `directory / "lexical"`; the same texts give the same files.

    Raises:
        AssetError: none of them has a word to search for.
    """
    import bm25s
    import Stemmer
    from bm25s.tokenization import Tokenizer

    # The library's plain function numbers words in the order of a set, which differs in every process.
    tokenizer = Tokenizer(stopwords="en", stemmer=Stemmer.Stemmer("english"))
    ids = list(tokenizer.streaming_tokenize(texts))
    if not any(any(row) for row in ids):
        raise AssetError("no passage holds a word to search for; leave corpus.hybrid off")
    index = bm25s.BM25(method="lucene")
    index.index((ids, tokenizer.get_vocab_dict()), show_progress=False)
    index.save(directory / BM25_DIRECTORY)


def _tokenize(texts: list[str]) -> Any:
    import bm25s
    import Stemmer

    return bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)


class Bm25Index:
    """BM25 over memory-mapped postings.

    Raises:
        AssetError: the files are missing or corrupt.
    """

    def __init__(self, directory: Path) -> None:
        import bm25s

        try:
            self._index = bm25s.BM25.load(directory / BM25_DIRECTORY, mmap=True)
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise AssetError(f"cannot read {directory / BM25_DIRECTORY}; {advice(error)} ({error})") from error
        self.count = int(self._index.scores["num_docs"])

    def search(self, texts: Sequence[str], top_k: int) -> Positions:
        """Find the passages with the best BM25 score: positions [queries, top_k], -1 where no word is shared."""
        found = self._index.retrieve(_tokenize(list(texts)), k=min(top_k, self.count), show_progress=False)
        return np.where(found.scores > 0, found.documents, -1).astype(np.int64)
