"""Build an index from passages: resumable, repeatable, published atomically.

The build works in a hidden directory beside the index. A shard of vectors appears there complete or not at all, and
its content depends only on its own passages. So a killed build continues where it stopped, with the same result.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from research.atomic_io import to_disk, write_json
from research.errors import AssetError, ConfigurationError, ResearchError
from research.passages import Passage
from research.settings import Settings
from services.machine.division import usable_cores
from services.process.progress import progress
from services.retriever.build.passage_readers import corpus_digest, read_passages
from services.retriever.build.vector_shards import SHARD, VectorShards
from services.retriever.encoder.checkpoint import Checkpoint, open_checkpoint
from services.retriever.encoder.encoder import load_encoders
from services.retriever.encoder.onnx_export import exported_graph
from services.retriever.index.bm25 import MAX_BM25_PASSAGES, write_bm25
from services.retriever.index.faiss_config import faiss_config_for
from services.retriever.index.file_sums import fault_in, seal
from services.retriever.index.manifest import MANIFEST, Manifest, Recipe, read_manifest, recipe_for
from services.retriever.index.milvus import MilvusCollection, collection_prefix, drop_collections, write_milvus
from services.retriever.index.passage_store import PASSAGES, PassageStore, write_passage_store
from services.retriever.index.search_index import SearchIndex
from services.retriever.index.vector_index import write_dense


def build_index(settings: Settings, passages: Path) -> Path:
    """Bring `settings.index_dir` up to date with `passages`, a file or a directory of files, and return it.

    Returns at once if it is current. Otherwise the old index is served until the new one is complete.
    An interrupted build continues when called again.

    Raises:
        AssetError: passages or encoder are missing or corrupt, or Milvus is unavailable.
        ConfigurationError: the encoder's settings contradict each other, or another build of this index runs.
    """
    target = settings.index_dir
    checkpoint = open_checkpoint(settings.encoder.name, settings.paths.data)
    recipe = recipe_for(checkpoint, settings.encoder, settings.corpus, corpus_digest(passages))
    with _only_builder(target):
        work = target.with_name(f".{target.name}.building")
        _finish_replacing(target)
        if _is_current(settings, checkpoint, recipe):
            _log(f"index {target} is up to date (revision {recipe.revision})")
        else:
            try:
                _build(settings, checkpoint, recipe, passages, work)
            except KeyboardInterrupt:
                _log("stopped; the vectors made so far are kept, and the same command continues from there")
                raise
            _log(f"index {target} is ready (revision {recipe.revision})")
        shutil.rmtree(work, ignore_errors=True)
    if (backend := settings.encoder.backend) != "torch":
        # Exported here, so that serving writes nothing.
        exported_graph(checkpoint, settings.paths.data, int8=backend == "onnx-int8")
    return target


def _is_current(settings: Settings, checkpoint: Checkpoint, recipe: Recipe) -> bool:
    corpus = settings.corpus
    try:
        manifest = read_manifest(settings.index_dir)
    except AssetError:
        return False
    if manifest.recipe != recipe or (manifest.milvus.uri if manifest.milvus else "") != corpus.milvus:
        return False
    try:
        SearchIndex(corpus.index, settings.index_dir, checkpoint, settings.encoder, threads=1)
    except ResearchError:
        if manifest.milvus:
            raise  # an unavailable Milvus is no reason to fill it again
        return False
    return True


def _build(settings: Settings, checkpoint: Checkpoint, recipe: Recipe, passages: Path, work: Path) -> None:
    backend = settings.encoder.passage_backend
    index = work / "index"
    plan = {"recipe": recipe.model_dump(), "backend": backend, "shard": SHARD, "milvus": settings.corpus.milvus}
    build_id = _resume_or_begin(work, plan)
    if not (index / MANIFEST).is_file():
        store = _snapshot(index, passages, recipe.corpus_sha256)
        _check_buildable(settings, checkpoint, len(store))
        vectors = VectorShards(work / "shards", store)
        if vectors.missing:
            # A build has its machine to itself; serving shares one, so it has a setting.
            vectors.encode(load_encoders(checkpoint, settings.encoder, backend, usable_cores(), settings.paths.data))
        _write_index(settings, checkpoint, recipe, store, vectors, index, build_id)
    # What cannot be opened must not replace what can.
    SearchIndex(settings.corpus.index, index, checkpoint, settings.encoder, threads=1)
    _publish(index, settings.index_dir)


def _write_index(
    settings: Settings,
    checkpoint: Checkpoint,
    recipe: Recipe,
    store: PassageStore,
    vectors: VectorShards,
    index: Path,
    build_id: str,
) -> None:
    corpus = settings.corpus
    structure, milvus = None, None
    if corpus.milvus:
        # One name per build: the served collection stays complete while the next one is filled.
        milvus = MilvusCollection(corpus.milvus, collection_prefix(corpus.index) + build_id)
        _log(f"writing {len(store)} vectors to {milvus.uri}, collection {milvus.collection}")
        _drop_unserved_collections(settings, milvus)
        write_milvus(milvus, vectors, checkpoint.dimension, exact=corpus.index_type == "flat")
    else:
        structure = faiss_config_for(corpus.index_type, len(store), checkpoint.dimension)
        _log(f"writing {len(store)} vectors as {structure.factory}")
        write_dense(index, vectors, structure, checkpoint.dimension)
    if recipe.lexical:
        _log("indexing words")
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
    ).write(index)


def _resume_or_begin(work: Path, plan: Mapping[str, object]) -> str:
    """Keep work with the same plan and drop all other; returns the build's id, which a resumed build keeps."""
    plan_file = work / "plan.json"
    try:
        unfinished = json.loads(plan_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        unfinished = None
    build_id = unfinished.pop("build_id", "") if isinstance(unfinished, dict) else ""
    if unfinished != plan or not build_id:
        shutil.rmtree(work, ignore_errors=True)
        build_id = secrets.token_hex(6)
    if (fault := _spoilt(work / "index")) is not None:
        # A power cut, perhaps; the vectors are files of their own, each complete.
        _log(f"{fault}; the index is written again")
        shutil.rmtree(work / "index")
    for directory in ("index", "shards"):
        (work / directory).mkdir(parents=True, exist_ok=True)
    for leftover in work.rglob("*.partial"):
        leftover.unlink()
    write_json(plan_file, {**plan, "build_id": build_id})
    return build_id


def _spoilt(index: Path) -> str | None:
    """What is wrong with an index that is complete but not published yet, all of it read; None if nothing is."""
    if not (index / MANIFEST).is_file():
        return None
    try:
        return fault_in(index, read_manifest(index).files or {}, largest_summed=None)
    except AssetError as error:
        return str(error)


def _snapshot(index: Path, passages: Path, digest: str) -> PassageStore:
    try:
        return PassageStore(index)
    except AssetError:
        pass
    with progress("copying", "passages") as advance:

        def counted() -> Iterator[Passage]:
            for passage in read_passages(passages):
                advance(1)
                yield passage

        write_passage_store(index, counted())
    if corpus_digest(passages) != digest:
        (index / PASSAGES).unlink()
        raise AssetError(f"{passages} changed while it was read; run the same command again")
    return PassageStore(index)


def _check_buildable(settings: Settings, checkpoint: Checkpoint, count: int) -> None:
    """Refuse before hours of encoding, not after."""
    corpus = settings.corpus
    if count == 0:
        raise AssetError("the corpus has no passages: there is nothing to index")
    if not corpus.milvus:
        faiss_config_for(corpus.index_type, count, checkpoint.dimension)
    if corpus.hybrid and count > MAX_BM25_PASSAGES:
        raise ConfigurationError(
            f"corpus.hybrid: {count} passages are above the limit of {MAX_BM25_PASSAGES} for BM25; set it to false"
        )


def _drop_unserved_collections(settings: Settings, new: MilvusCollection) -> None:
    """Drop the collections of former builds, except the published one: a server may be using it."""
    keep = {new.collection}
    with contextlib.suppress(AssetError):
        if published := read_manifest(settings.index_dir).milvus:
            keep.add(published.collection)
    drop_collections(new.uri, collection_prefix(settings.corpus.index), keep)


def _publish(index: Path, target: Path) -> None:
    if target.exists():
        target.rename(_replaced(target))
    index.rename(target)
    to_disk(target.parent)
    shutil.rmtree(_replaced(target), ignore_errors=True)


def _finish_replacing(target: Path) -> None:
    """Clean up after a kill between the two renames or before the end of the removal."""
    if not target.exists() and _replaced(target).exists():
        _replaced(target).rename(target)
    shutil.rmtree(_replaced(target), ignore_errors=True)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


@contextmanager
def _only_builder(target: Path) -> Iterator[None]:
    """Hold a lock on the index; the kernel releases it even after a kill."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"another build of {target} is running; wait for it or stop it") from error
        yield


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
