"""A published index: vectors, perhaps words, and the passages that they stand for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from research.errors import AssetError
from research.settings.retriever import EncoderConfig
from services.retriever.encoder.checkpoint import Checkpoint
from services.retriever.index.bm25 import Bm25Index
from services.retriever.index.fusion import fuse
from services.retriever.index.manifest import read_manifest
from services.retriever.index.milvus import MilvusVectors
from services.retriever.index.passage_lookup import PassageLookup
from services.retriever.index.passage_store import PassageStore
from services.retriever.index.vector_index import VectorIndex, open_dense
from services.retriever.types import HitDict, HitDicts, Vectors

# The least depth of each ranking before fusion; with less, passages that both rank moderately well would be lost.
_FUSED_DEPTH = 50
# Replacing an index takes two renames.
_REPLACED_SECONDS = 1.0


class SearchIndex:
    """One revision of an index, as `SearchTarget`. Not to be called from two threads at once.

    Args:
        name: the name that requests use.
        directory: where it was published.
        checkpoint, encoder: what encodes the queries.
        threads: of the vector search.

    Raises:
        AssetError: a part is missing or corrupt, or the parts differ in number.
        ConfigurationError: it was built with another encoder than `checkpoint` under `encoder`'s settings.
    """

    def __init__(
        self, name: str, directory: Path, checkpoint: Checkpoint, encoder: EncoderConfig, threads: int
    ) -> None:
        self.name = name
        self.manifest = read_manifest(directory)
        self.manifest.check_encoder(checkpoint, encoder, directory)
        self.manifest.check_files(directory)
        self.passages = PassageStore(directory)
        # Reads with a file of its own, since it is asked in another thread.
        self.lookup = PassageLookup(PassageStore(directory))
        self.dense = self._open_dense(directory, threads)
        self.lexical = Bm25Index(directory) if self.manifest.recipe.lexical else None
        self._check_consistent(directory, checkpoint.dimension)

    @staticmethod
    def open(name: str, directory: Path, checkpoint: Checkpoint, encoder: EncoderConfig, threads: int) -> SearchIndex:
        """Open an index that may be replaced at this very moment; the result is of a single revision.

        Raises what the constructor raises.
        """
        until = None
        while True:
            before = _inode(directory)
            fault: AssetError | None = None
            try:
                opened = SearchIndex(name, directory, checkpoint, encoder, threads)
            except AssetError as error:
                # Between the two renames of a replacement there is no directory.
                if before is not None and _inode(directory) == before:
                    raise
                fault = error
            else:
                if _inode(directory) == before:
                    return opened
            # From the first that failed on: to open a large one takes longer than to replace it.
            until = until or time.monotonic() + _REPLACED_SECONDS
            if time.monotonic() > until:
                raise fault or AssetError(f"index {directory} is replaced again and again; try again later")
            time.sleep(_REPLACED_SECONDS / 20)

    @property
    def revision(self) -> str:
        """Of the build."""
        return self.manifest.revision

    @property
    def key(self) -> str:
        """Index and revision."""
        return f"{self.name}@{self.revision}"

    def search(self, texts: Sequence[str], vectors: Vectors, top_k: int) -> list[HitDicts]:
        """Find the best passages of each query, given as text and as unit vector, float32 [queries, dimension].

        A hit's score is the inner product, or the fused score if the index also holds words; higher is better.
        """
        ranked = self.rank(texts, vectors, top_k)
        return [[self._hit(position, score) for position, score in row] for row in ranked]

    def rank(self, texts: Sequence[str], vectors: Vectors, top_k: int) -> list[list[tuple[int, float]]]:
        """Positions and scores of the best passages of each query, at most `top_k`, best first."""
        if self.lexical is None:
            scores, positions = self.dense.search(vectors, top_k)
            return [
                [(position, score) for position, score in zip(*row, strict=True) if position >= 0]
                for row in zip(positions.tolist(), scores.tolist(), strict=True)
            ]
        depth = max(top_k, _FUSED_DEPTH)
        near = self.dense.search(vectors, depth)[1].tolist()
        worded = self.lexical.search(texts, depth).tolist()
        return [fuse(pair, top_k) for pair in zip(near, worded, strict=True)]

    def _hit(self, position: int, score: float) -> HitDict:
        return {**self.passages.record(position), "score": score}

    def _open_dense(self, directory: Path, threads: int) -> VectorIndex:
        if self.manifest.milvus is not None:
            return MilvusVectors(self.manifest.milvus)
        if self.manifest.structure is None:
            raise AssetError(f"the manifest of index {directory} names neither structure nor Milvus; build it again")
        return open_dense(directory, self.manifest.structure, threads)

    def _check_consistent(self, directory: Path, dimension: int) -> None:
        counts = {"manifest": self.manifest.count, "passages": len(self.passages), "vectors": self.dense.count}
        if self.lexical is not None:
            counts["words"] = self.lexical.count
        if len(set(counts.values())) != 1 or self.dense.dimension != dimension:
            held = ", ".join(f"{count} {part}" for part, count in counts.items())
            raise AssetError(
                f"index {directory} is inconsistent: it has {held} and vectors of size {self.dense.dimension}, "
                f"for an encoder of size {dimension}; build it again with `research index`"
            )


def _inode(directory: Path) -> int | None:
    try:
        return directory.stat().st_ino
    except FileNotFoundError:
        return None
