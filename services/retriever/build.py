"""Build an index from passages: resumable, repeatable, published at once.

Work goes on in a hidden directory beside the index. A shard of vectors appears there complete or not at all, and what
it holds depends on its own passages only; so a build that was killed goes on where it was and ends up the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from research.config import Settings
from research.errors import AssetError, ConfigurationError, ResearchError
from research.files import write_json
from services.retriever.checkpoint import Checkpoint, open_checkpoint
from services.retriever.dense import write_dense
from services.retriever.encoder import load_encoders
from services.retriever.lexical import write_lexical
from services.retriever.manifest import MANIFEST, Manifest, Recipe, recipe_for
from services.retriever.milvus import MilvusCollection, write_milvus
from services.retriever.onnx_export import exported_graph
from services.retriever.passage_store import PassageStore, write_passage_store
from services.retriever.published import SearchIndex
from services.retriever.shards import SHARD, VectorShards
from services.retriever.sources import corpus_digest, read_passages
from services.retriever.structure import structure_for


def build_index(settings: Settings, passages: Path) -> Path:
    """Bring `settings.index_dir` up to date with `passages`, a file or a directory of files, and return it.

    Returns at once if it is already. Otherwise the old index stays in service until the new one is complete.
    A build that was interrupted goes on when called again.

    Raises:
        AssetError: passages or encoder are missing or broken, or Milvus does not answer.
        ConfigurationError: the encoder's settings contradict each other, or another build of this index runs.
    """
    target = settings.index_dir
    checkpoint = open_checkpoint(settings.encoder.name, settings.paths.data)
    recipe = recipe_for(checkpoint, settings.encoder, settings.corpus, corpus_digest(passages))
    with _only_builder(target):
        work = target.with_name(f".{target.name}.building")
        if _is_current(settings, checkpoint, recipe):
            _say(f"index {target} is up to date (revision {recipe.revision})")
        else:
            try:
                _build(settings, checkpoint, recipe, passages, work)
            except KeyboardInterrupt:
                _say("stopped; what is encoded is kept, the same command goes on from there")
                raise
            _say(f"index {target} is ready (revision {recipe.revision})")
        shutil.rmtree(work, ignore_errors=True)
    if settings.encoder.backend == "onnx-int8":
        # Made here, so that serving needs to write nothing.
        exported_graph(checkpoint, settings.paths.data, int8=True)
    return target


def _is_current(settings: Settings, checkpoint: Checkpoint, recipe: Recipe) -> bool:
    try:
        published = SearchIndex(settings.corpus.index, settings.index_dir, checkpoint, settings.encoder, threads=1)
    except ResearchError:
        return False
    return published.manifest.recipe == recipe


def _build(settings: Settings, checkpoint: Checkpoint, recipe: Recipe, passages: Path, work: Path) -> None:
    backend = settings.encoder.index_backend
    index = work / "index"
    _resume_or_begin(work, {"recipe": recipe.model_dump(), "backend": backend, "shard": SHARD})
    if not (index / MANIFEST).is_file():
        store = _snapshot(index, passages)
        vectors = VectorShards(work / "shards", store)
        if vectors.missing:
            vectors.encode(load_encoders(checkpoint, settings.encoder, backend, _usable_cores(), settings.paths.data))
        _write_index(settings, checkpoint, recipe, store, vectors, index)
    _publish(index, settings.index_dir)


def _write_index(
    settings: Settings, checkpoint: Checkpoint, recipe: Recipe, store: PassageStore, vectors: VectorShards, index: Path
) -> None:
    corpus = settings.corpus
    structure, milvus = None, None
    if corpus.milvus:
        milvus = MilvusCollection(corpus.milvus, _collection(corpus.index, recipe))
        _say(f"writing {len(store)} vectors to {milvus.uri}, collection {milvus.collection}")
        write_milvus(milvus, vectors, checkpoint.dimension)
    else:
        structure = structure_for(corpus.structure, len(store), checkpoint.dimension)
        _say(f"writing {len(store)} vectors as {structure.factory}")
        write_dense(index, vectors, structure, checkpoint.dimension)
    if recipe.lexical:
        _say("indexing words")
        records = map(store.record, range(len(store)))
        write_lexical(index, (f"{record['title']} {record['text']}" for record in records))
    Manifest(
        revision=recipe.revision,
        recipe=recipe,
        count=len(store),
        encoder=checkpoint.name,
        build_backend=settings.encoder.index_backend,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        structure=structure,
        milvus=milvus,
    ).write(index)


def _collection(index: str, recipe: Recipe) -> str:
    """A name of its own for each revision, so that one is served while the next is filled."""
    return "".join(
        letter if letter.isascii() and letter.isalnum() else "_" for letter in f"r_{index}_{recipe.revision}"
    )


def _resume_or_begin(work: Path, plan: dict[str, object]) -> None:
    plan_file = work / "plan.json"
    try:
        unfinished = json.loads(plan_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        unfinished = None
    if unfinished != plan:
        shutil.rmtree(work, ignore_errors=True)
    for directory in ("index", "shards"):
        (work / directory).mkdir(parents=True, exist_ok=True)
    for leftover in work.rglob("*.partial"):
        leftover.unlink()
    write_json(plan_file, plan)


def _snapshot(index: Path, passages: Path) -> PassageStore:
    try:
        return PassageStore(index)
    except AssetError:
        pass
    interval = 0.5 if sys.stderr.isatty() else 15
    write_passage_store(index, tqdm(read_passages(passages), unit="passage", desc="copying", mininterval=interval))
    return PassageStore(index)


def _publish(index: Path, target: Path) -> None:
    replaced = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    index.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _only_builder(target: Path) -> Iterator[None]:
    """Hold a lock on the index; the kernel lets go of it even after a kill."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"another build of {target} is running; wait for it or end it") from error
        yield


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _usable_cores() -> int:
    """A build is alone on its machine, so it takes what it may; serving has a setting, because it has neighbours."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
