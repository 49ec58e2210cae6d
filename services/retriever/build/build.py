"""Build an index from passages: resumable, repeatable, published atomically.

The build works in a hidden directory beside the index. A shard of vectors appears there complete or not at all, and
its content depends only on its own passages. So a killed build continues where it stopped, with the same result.
"""

from __future__ import annotations

import errno
import fcntl
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research.atomic_io import to_disk, write_json
from research.errors import AssetError, ConfigurationError, ResearchError
from research.passages import Passage
from research.settings import Settings
from services.machine.division import usable_cores
from services.process.progress import progress
from services.retriever.build.faiss_import import CheckedImport, FaissImport
from services.retriever.build.imported_vectors import RefusedImportError
from services.retriever.build.index_writer import log, write_index
from services.retriever.build.passage_readers import corpus_digest, read_passages
from services.retriever.build.replacing import holds_other_work, require_replaceable
from services.retriever.build.vector_shards import SHARD, VectorShards
from services.retriever.encoder.checkpoint import Checkpoint, open_checkpoint
from services.retriever.encoder.encoder import load_encoders
from services.retriever.encoder.onnx_export import exported_graph
from services.retriever.index.bm25 import MAX_BM25_PASSAGES
from services.retriever.index.faiss_config import faiss_config_for
from services.retriever.index.file_sums import fault_in
from services.retriever.index.manifest import MANIFEST, Recipe, read_manifest, recipe_for
from services.retriever.index.passage_store import PASSAGES, PassageStore, write_passage_store
from services.retriever.index.search_index import SearchIndex

PLAN = "plan.json"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def build_index(
    settings: Settings, passages: Path, imported: Path | None = None, *, keep: bool = False, in_passing: bool = False
) -> Path:
    """Bring `settings.index_dir` up to date with `passages`, a file or a directory of files, and return it.

    Returns at once if it is current. Otherwise the old index is served until the new one is complete.
    An interrupted build continues when called again.

    Args:
        settings: name the index and its encoder.
        passages: in the order of the vectors, if those are imported.
        imported: a FAISS file with the vectors of the passages, which are then not encoded.
        keep: serve that file as it is, instead of converting it.
        in_passing: nobody asked for this build outright, so it replaces nothing dear (`require_replaceable`).

    Raises:
        AssetError: passages or encoder are missing or corrupt, Milvus is unavailable, the disk is full, `imported` is
            not an index of these passages by this encoder, or an import would be replaced by embedding anew.
        ConfigurationError: the encoder's settings contradict each other, another build of this index runs, or one
            `in_passing` would replace what is dear.
    """
    target = settings.index_dir
    checkpoint = open_checkpoint(settings.encoder.name, settings.paths.data)
    source = FaissImport(settings, checkpoint, imported, keep=keep) if imported else None
    recipe = recipe_for(checkpoint, settings.encoder, settings.corpus, corpus_digest(passages))
    if source:
        log(f"reading {imported}, {len(source.vectors)} vectors ({source.vectors.kind}), once for its checksum")
        recipe = source.recipe(recipe)
    with _only_builder(target):
        work = target.with_name(f".{target.name}.building")
        _finish_replacing(target)
        if _is_current(settings, checkpoint, recipe):
            log(f"index {target} is up to date (revision {read_manifest(target).revision})")
            if in_passing and holds_other_work(work / PLAN, _plan(settings, recipe)):
                log(f"an unfinished build of it with other settings is kept in {work}")
                return _ready_to_serve(settings, checkpoint)
        else:
            if source is None:
                _refuse_to_replace_import(target)
            if in_passing:
                require_replaceable(settings, _plan(settings, recipe), work, work / PLAN)
            try:
                _build(settings, checkpoint, recipe, passages, work, source)
            except KeyboardInterrupt:
                log("stopped; the vectors made so far are kept, and the same command continues from there")
                raise
            except RefusedImportError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                raise AssetError(
                    f"cannot write the index in {work} ({error.strerror}); make room on that disk, and the same "
                    "command continues"
                ) from error
            log(f"index {target} is ready (revision {recipe.revision})")
        shutil.rmtree(work, ignore_errors=True)
    return _ready_to_serve(settings, checkpoint)


def _ready_to_serve(settings: Settings, checkpoint: Checkpoint) -> Path:
    if (backend := settings.encoder.backend) != "torch":
        # Exported here, so that serving writes nothing.
        exported_graph(checkpoint, settings.paths.data, int8=backend == "onnx-int8")
    return settings.index_dir


def _plan(settings: Settings, recipe: Recipe) -> dict[str, Any]:
    """All that decides whether an unfinished build can be gone on with."""
    backend = settings.encoder.passage_backend
    return {"recipe": recipe.model_dump(), "backend": backend, "shard": SHARD, "milvus": settings.corpus.milvus}


def _is_current(settings: Settings, checkpoint: Checkpoint, recipe: Recipe) -> bool:
    corpus = settings.corpus
    try:
        manifest = read_manifest(settings.index_dir)
    except AssetError:
        return False
    if not manifest.recipe.covers(recipe) or (manifest.milvus.uri if manifest.milvus else "") != corpus.milvus:
        return False
    try:
        SearchIndex(corpus.index, settings.index_dir, checkpoint, settings.encoder, threads=1)
    except ResearchError:
        if manifest.milvus:
            raise  # an unavailable Milvus is no reason to fill it again
        return False
    return True


def _refuse_to_replace_import(target: Path) -> None:
    """To embed anew takes hours or days: nobody wants that because an import is spoilt or a setting differs."""
    try:
        imported = read_manifest(target).imported
    except AssetError:
        return
    if imported:
        raise AssetError(
            f"index {target} was imported from {imported.file}; it is spoilt, or not of these passages and settings; "
            "import that file again with `research index --import`, or remove the index to embed the passages"
        )


def _build(
    settings: Settings, checkpoint: Checkpoint, recipe: Recipe, passages: Path, work: Path, source: FaissImport | None
) -> None:
    index = work / "index"
    build_id = _resume_or_begin(work, _plan(settings, recipe))
    if not (index / MANIFEST).is_file():
        store = _snapshot(index, passages, recipe.corpus_sha256)
        checked = _checked(source, store, passages) if source else None
        _check_buildable(settings, checkpoint, len(store), kept=source is not None and source.keep)
        vectors = source.vectors if source else _encoded(settings, checkpoint, work / "shards", store)
        write_index(settings, checkpoint, recipe, store, vectors, index, build_id, checked)
    # What cannot be opened must not replace what can.
    SearchIndex(settings.corpus.index, index, checkpoint, settings.encoder, threads=1)
    _publish(index, settings.index_dir)


def _checked(source: FaissImport, store: PassageStore, passages: Path) -> CheckedImport:
    log("embedding a sample of the passages, to compare it with the vectors")
    checked = source.check(store, passages)
    log(f"they fit the encoder: median cosine {checked.match.cosine:.4f}, passages written as: {checked.match.form}")
    return checked


def _encoded(settings: Settings, checkpoint: Checkpoint, directory: Path, store: PassageStore) -> VectorShards:
    vectors = VectorShards(directory, store)
    if vectors.missing:
        encoder = settings.encoder
        # A build has its machine to itself; serving shares one, so it has a setting.
        vectors.encode(load_encoders(checkpoint, encoder, encoder.passage_backend, usable_cores(), settings.paths.data))
    return vectors


def _resume_or_begin(work: Path, plan: Mapping[str, object]) -> str:
    """Keep work with the same plan and drop all other; returns the build's id, which a resumed build keeps."""
    plan_file = work / PLAN
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
        log(f"{fault}; the index is written again")
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


def _check_buildable(settings: Settings, checkpoint: Checkpoint, count: int, *, kept: bool) -> None:
    """Refuse before hours of encoding, not after."""
    corpus = settings.corpus
    if count == 0:
        raise AssetError("the corpus has no passages: there is nothing to index")
    if not corpus.milvus and not kept:
        faiss_config_for(corpus.index_type, count, checkpoint.dimension)
    if corpus.hybrid and count > MAX_BM25_PASSAGES:
        raise ConfigurationError(
            f"corpus.hybrid: {count} passages are above the limit of {MAX_BM25_PASSAGES} for BM25; set it to false"
        )


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
