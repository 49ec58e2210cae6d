"""A published index: flat inner-product FAISS vectors beside the passages they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from research import config
from research.errors import AssetError
from services.retriever.checkpoint import Checkpoint
from services.retriever.manifest import Manifest, read_manifest
from services.retriever.onnx_session import Vectors
from services.retriever.passage_store import PassageStore

VECTORS = "vectors.faiss"


def write_vectors(directory: Path, shards: Iterable[Vectors], dimension: int) -> None:
    """Write `vectors.faiss` from shards of unit vectors, float32 [rows, dimension] each, in order."""
    index = faiss.IndexFlatIP(dimension)
    for shard in shards:
        index.add(shard)
    faiss.write_index(index, str(directory / VECTORS))


class SearchIndex:
    """Exact nearest neighbours, memory-mapped. Not to be called from two threads at once.

    Raises:
        AssetError: a part is missing or broken, or vectors and passages differ in number.
        ConfigurationError: it was built with another encoder than `checkpoint` under `encoder`'s settings.
    """

    def __init__(self, directory: Path, checkpoint: Checkpoint, encoder: config.Encoder, threads: int) -> None:
        self.manifest: Manifest = read_manifest(directory)
        self.manifest.refuse_unless_fits(checkpoint, encoder, directory)
        self.passages = PassageStore(directory)
        self._vectors = _read_vectors(directory / VECTORS)
        self._threads = threads
        counts = {self.manifest.count, len(self.passages), int(self._vectors.ntotal)}
        if len(counts) != 1 or self._vectors.d != checkpoint.dimension:
            raise AssetError(
                f"index {directory} does not hold together: {self._vectors.ntotal} vectors of size "
                f"{self._vectors.d}, {len(self.passages)} passages, {self.manifest.count} in the manifest; "
                "build it again with `research index`"
            )

    def search(self, vectors: Vectors, top_k: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Find the nearest passages of unit vectors, float32 [queries, dimension].

        Returns:
            Scores and positions, best first, both [queries, min(top_k, passages)].
        """
        # The OpenMP setting belongs to the calling thread.
        faiss.omp_set_num_threads(self._threads)
        scores, positions = self._vectors.search(vectors, min(top_k, len(self.passages)))
        return scores, positions


def _read_vectors(path: Path) -> Any:
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise AssetError(f"cannot read {path}; build the index again with `research index` ({error})") from error
