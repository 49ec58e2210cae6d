"""Writes the files of an index: vectors in their structure, words, and the manifest at the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from research.errors import AssetError
from research.settings import Settings
from services.machine.division import usable_cores
from services.retriever.build.faiss_import import CheckedImport
from services.retriever.encoder.checkpoint import Checkpoint
from services.retriever.index.bm25 import write_bm25
from services.retriever.index.faiss_config import faiss_config_for
from services.retriever.index.file_sums import seal
from services.retriever.index.manifest import Imported, Manifest, Recipe, read_manifest
from services.retriever.index.milvus import (
    MilvusCollection,
    MilvusVectors,
    collection_prefix,
    drop_collections,
    write_milvus,
)
from services.retriever.index.passage_store import PassageStore
from services.retriever.index.vector_index import VectorIndex, VectorSource, open_dense, write_dense


def write_index(
    settings: Settings,
    checkpoint: Checkpoint,
    recipe: Recipe,
    store: PassageStore,
    vectors: VectorSource,
    index: Path,
    build_id: str,
    checked: CheckedImport | None,
) -> None:
    """Write all of an index but its passages, which `index` has already.

    Args:
        settings: name the index and how its vectors are kept.
        checkpoint: of the encoder.
        recipe: of the index.
        store: its passages.
        vectors: of the passages, in order.
        index: the directory to write into; lists that are not filled yet lie beside it.
        build_id: names the Milvus collection of this build.
        checked: the import that `vectors` are from, if they are not ours.

    Raises:
        AssetError: Milvus is unavailable, FAISS cannot write to the disk, or what is imported changed.
        OSError: something else cannot be written.
    """
    corpus = settings.corpus
    structure, milvus = None, None
    reopened: Callable[[], VectorIndex]
    if corpus.milvus:
        # One name per build: the served collection stays complete while the next one is filled.
        milvus = MilvusCollection(corpus.milvus, collection_prefix(corpus.index) + build_id)
        log(f"writing {len(store)} vectors to {milvus.uri}, collection {milvus.collection}")
        _drop_unserved_collections(settings, milvus)
        write_milvus(milvus, vectors.parts(), checkpoint.dimension, exact=corpus.index_type == "flat")
        reopened = partial(MilvusVectors, milvus)
    else:
        if checked and checked.source.keep:
            log(f"{checked.source.vectors.path} is kept as it is: copying it")
            structure = checked.source.copy_to(index)
        else:
            structure = faiss_config_for(corpus.index_type, len(store), checkpoint.dimension)
            log(f"writing {len(store)} vectors as {structure.factory}")
            write_dense(index, vectors, structure, checkpoint.dimension, unfinished=index.parent)
        reopened = partial(open_dense, index, structure, usable_cores())
    imported = _measured(checked, reopened()) if checked else None
    if recipe.lexical:
        log("indexing words")
        records = map(store.record, range(len(store)))
        write_bm25(index, (f"{record['title']} {record['text']}" for record in records))
    Manifest(
        revision=recipe.revision,
        recipe=recipe,
        count=len(store),
        encoder=checkpoint.name,
        build_backend=settings.encoder.passage_backend,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        structure=structure,
        milvus=milvus,
        files=seal(index),
        imported=imported,
    ).write(index)


def log(message: str) -> None:
    """Tell who waits for the build."""
    print(message, file=sys.stderr, flush=True)


def _measured(checked: CheckedImport, dense: VectorIndex) -> Imported:
    log(f"searching for {len(checked.queries)} titles, to measure recall")
    imported = checked.measured(dense)
    if imported.recall:
        shares = ", ".join(f"{share:.3f} at {depth}" for depth, share in imported.recall.items())
        log(f"recall against exact search in {imported.file}: {shares}")
    else:
        log(f"recall is not known: an {imported.kind} has only codes to compare with")
    return imported


def _drop_unserved_collections(settings: Settings, new: MilvusCollection) -> None:
    """Drop the collections of former builds, except the published one: a server may be using it."""
    keep = {new.collection}
    with contextlib.suppress(AssetError):
        if published := read_manifest(settings.index_dir).milvus:
            keep.add(published.collection)
    drop_collections(new.uri, collection_prefix(settings.corpus.index), keep)
