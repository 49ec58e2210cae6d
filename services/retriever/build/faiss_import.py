"""A FAISS index that somebody else built: checked, then converted to a structure of ours or kept as it is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.atomic_io import atomic_write, sha256_of
from research.errors import AssetError, ConfigurationError
from research.settings import Settings
from services.retriever.build.encoder_check import Match, bare_encoder, check_encoder
from services.retriever.build.imported_vectors import ImportedVectors, RefusedImportError
from services.retriever.build.recall import DEPTHS, exact_search, recall_at, sampled_titles
from services.retriever.encoder.checkpoint import Checkpoint
from services.retriever.index.faiss_config import KEPT, FaissConfig
from services.retriever.index.manifest import Imported, Recipe
from services.retriever.index.passage_store import PassageStore
from services.retriever.index.vector_index import VECTORS, VectorIndex
from services.retriever.types import Vectors

_COPIED_BYTES = 16 * 2**20
# An exhaustive search reads everything once per call, reranking holds the candidates of all queries of a call.
_SEARCHED_TOGETHER = 128


class FaissImport:
    """A FAISS file that is to become an index, with the settings that it must fit.

    Args:
        path: what `faiss.write_index` wrote.
        keep: serve the file as it is, instead of converting it.

    Raises:
        AssetError: the file cannot be imported; the message says why and what to do.
        ConfigurationError: it is to be kept, and in Milvus.
    """

    def __init__(self, settings: Settings, checkpoint: Checkpoint, path: Path, *, keep: bool) -> None:
        self.keep = keep
        self.vectors = vectors = ImportedVectors(path)
        self._settings, self._checkpoint = settings, checkpoint
        if keep and settings.corpus.milvus:
            raise ConfigurationError("corpus.milvus: a FAISS index that is kept stays in its file; leave out --keep")
        if not len(vectors):
            raise AssetError(f"{path} holds no vectors: there is nothing to import")
        if vectors.dimension != checkpoint.dimension:
            raise AssetError(
                f"{path} has vectors of size {vectors.dimension}, and the encoder {checkpoint.name} makes vectors of "
                f"size {checkpoint.dimension}; set encoder.name to the encoder that made the index"
            )
        if not keep and not vectors.whole:
            raise AssetError(
                f"{path}: an {vectors.kind} has codes instead of its vectors, and nothing better can be made of them; "
                "add --keep to serve it as it is, or import the flat index that it was made from"
            )
        # What ranks by inner products may be kept whatever the lengths: that of a query changes no ranking.
        vectors.must_be_unit = vectors.whole and not (keep and vectors.inner_product)

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with these vectors in it; reads the whole file."""
        structure = KEPT if self.keep else recipe.structure
        return recipe.model_copy(update={"imported_sha256": sha256_of(self.vectors.path), "structure": structure})

    def check(self, store: PassageStore, passages: Path) -> CheckedImport:
        """Compare numbers, and vectors of a sample with those of the configured encoder.

        Raises:
            RefusedImportError: there are more or fewer passages than vectors, or the encoder is another.
        """
        if len(store) != len(self.vectors):
            raise RefusedImportError(
                f"{self.vectors.path} has {len(self.vectors)} vectors, and {passages} has {len(store)} passages: they "
                "do not belong together, or one of them is cut; each vector needs its passage, in the same order"
            )
        encoder = bare_encoder(self._settings, self._checkpoint)
        match = check_encoder(self._settings, self._checkpoint, store, self.vectors, encoder)
        return CheckedImport(self, match, encoder.encode_queries(sampled_titles(store)))

    def copy_to(self, index: Path) -> FaissConfig:
        """Copy the file into an index, unless an import that was killed has done so; returns its structure.

        Raises:
            AssetError: the disk has not enough room, or the file is another than the one that was opened.
        """
        source, size, copy = self.vectors.path, self.vectors.path.stat().st_size, index / VECTORS
        # Work is continued only if the checksum is the same, and the name stands for all of a copy.
        if not (copy.is_file() and copy.stat().st_size == size):
            free = shutil.disk_usage(index).free
            if free < size:
                raise AssetError(
                    f"{source} has {size} bytes, and at {index} only {free} are free; make room on that disk"
                )
            with source.open("rb") as stream, atomic_write(copy) as out:
                shutil.copyfileobj(stream, out, _COPIED_BYTES)
                self.vectors.refuse_if_changed()
        return FaissConfig(KEPT, self.vectors.kind)


@dataclass(frozen=True, slots=True)
class CheckedImport:
    """An import that may begin.

    Attributes:
        source: what is imported.
        match: how its vectors fit the encoder.
        queries: titles, embedded as queries, to measure recall with.
    """

    source: FaissImport
    match: Match
    queries: Vectors

    def measured(self, opened: VectorIndex) -> Imported:
        """What the manifest says of this import, recall against exact search among the imported vectors included.

        Raises:
            RefusedImportError: the file changed since it was opened.
        """
        vectors = self.source.vectors
        recall = self._recall(vectors, opened) if vectors.whole else None
        vectors.refuse_if_changed()
        return Imported(
            file=vectors.path.name,
            kind=vectors.kind,
            metric="inner product" if vectors.inner_product else "L2",
            text=self.match.form,
            cosine=round(self.match.cosine, 4),
            queries=len(self.queries),
            recall=recall,
        )

    def _recall(self, vectors: ImportedVectors, opened: VectorIndex) -> dict[int, float]:
        if self.source.keep and vectors.exact:
            return dict.fromkeys(DEPTHS, 1.0)  # by definition, and the file is not read five times to see it
        queries, deepest = self.queries, min(max(DEPTHS), len(vectors))
        exact = exact_search(vectors, queries, deepest).tolist()
        starts = range(0, len(queries), _SEARCHED_TOGETHER)
        parts = [opened.search(queries[start : start + _SEARCHED_TOGETHER], deepest)[1] for start in starts]
        found = np.concatenate(parts).tolist()
        return {depth: recall_at(found, [set(row[:depth]) for row in exact], depth) for depth in DEPTHS}
