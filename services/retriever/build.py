"""Build an index from passages: resumable, bit for bit repeatable, published at once.

Work goes on in a hidden directory beside the index. A shard of vectors appears there complete or not
at all, and what it holds depends on its own passages only; so a build that was killed goes on where it was and
ends up the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from research.config import Settings
from research.errors import AssetError, ConfigurationError, ResearchError
from research.files import atomic_write, sha256_of, write_json
from research.passages import iter_passages
from services.retriever.checkpoint import Checkpoint, open_checkpoint
from services.retriever.encoder import Encoder, load_encoder
from services.retriever.index import SearchIndex, write_vectors
from services.retriever.manifest import MANIFEST, Manifest, Recipe, recipe_for
from services.retriever.onnx_export import exported_graph
from services.retriever.passage_store import PassageStore, write_passage_store

# Passages a shard: what a kill can cost at most.
_SHARD = 256


def build_index(settings: Settings, passages: Path) -> Path:
    """Bring `settings.index_dir` up to date with the JSONL file `passages` and return it.

    Returns at once if it is already. Otherwise the old index stays in service until the new one is complete.
    A build that was interrupted goes on when called again.

    Raises:
        AssetError: passages or encoder are missing or broken.
        ConfigurationError: the encoder's settings contradict each other, or another build of this index runs.
    """
    target = settings.index_dir
    checkpoint = open_checkpoint(settings.encoder.name, settings.paths.data)
    recipe = recipe_for(checkpoint, settings.encoder, _corpus_digest(passages))
    work = target.with_name(f".{target.name}.building")
    with _only_builder(target):
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
        published = SearchIndex(settings.index_dir, checkpoint, settings.encoder, threads=1)
    except ResearchError:
        return False
    return published.manifest.recipe == recipe


def _build(settings: Settings, checkpoint: Checkpoint, recipe: Recipe, passages: Path, work: Path) -> None:
    backend = settings.encoder.index_backend
    index, shards = work / "index", work / "shards"
    _resume_or_begin(work, {**asdict(recipe), "backend": backend, "shard": _SHARD})
    if not (index / MANIFEST).is_file():
        store = _snapshot(index, passages)
        starts = range(0, len(store), _SHARD)
        if missing := [start for start in starts if not _shard_path(shards, start).is_file()]:
            encoder = load_encoder(checkpoint, settings.encoder, backend, _usable_cores(), settings.paths.data)
            _encode_shards(encoder, store, shards, missing)
        vectors = (np.load(_shard_path(shards, start)) for start in starts)
        write_vectors(index, vectors, checkpoint.dimension)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        Manifest(recipe, len(store), checkpoint.name, backend, created).write(index)
    _publish(index, settings.index_dir)


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
        _say(f"copying passages from {passages}")
    write_passage_store(index, iter_passages(passages))
    return PassageStore(index)


def _encode_shards(encoder: Encoder, store: PassageStore, shards: Path, missing: list[int]) -> None:
    sizes = {start: min(_SHARD, len(store) - start) for start in missing}
    left = sum(sizes.values())
    with tqdm(
        total=len(store),
        initial=len(store) - left,
        unit="passage",
        desc="encoding",
        # In a log file every refresh is a line.
        mininterval=0.5 if sys.stderr.isatty() else 15,
    ) as progress:
        for start, size in sizes.items():
            records = (store.record(position) for position in range(start, start + size))
            vectors = encoder.encode_passages((record["title"], record["text"]) for record in records)
            with atomic_write(_shard_path(shards, start)) as stream:
                np.save(stream, vectors)
            progress.update(size)


def _shard_path(shards: Path, start: int) -> Path:
    return shards / f"{start:010d}.npy"


def _publish(index: Path, target: Path) -> None:
    replaced = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    index.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _corpus_digest(passages: Path) -> str:
    try:
        empty = passages.stat().st_size == 0
        digest = sha256_of(passages)
    except OSError as error:
        raise AssetError(f"cannot read passages {passages}: {error.strerror}; run `research prepare` first") from error
    if empty:
        raise AssetError(f"{passages} is empty: there is nothing to index")
    return digest


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
