"""The vectors of a build in shards on disk: each shard is complete, and a killed build continues with the rest."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from research.atomic_io import atomic_write
from services.process.progress import progress
from services.retriever.encoder.encoder import Encoder
from services.retriever.index.passage_store import PassageStore
from services.retriever.types import Vectors

# Passages per shard: the most work that a kill can cost, per encoder.
SHARD = 256


class VectorShards:
    """Unit vectors of the passages of `store`, float32, in files of up to `SHARD` rows each."""

    def __init__(self, directory: Path, store: PassageStore) -> None:
        self._directory = directory
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def parts(self, start: int = 0) -> Iterator[Vectors]:
        """All vectors from a position on, a shard at a time."""
        for first in self._starts[start // SHARD :]:
            yield np.load(self._path(first))[max(0, start - first) :]

    @property
    def missing(self) -> list[int]:
        """First positions of the missing shards."""
        return [start for start in self._starts if not self._path(start).is_file()]

    def sample(self, count: int, seed: int) -> Vectors:
        """Draw `count` vectors, or all if there are fewer."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        parts = []
        for start in self._starts:
            first, last = np.searchsorted(chosen, [start, start + SHARD])
            if first < last:
                parts.append(np.load(self._path(start), mmap_mode="r")[chosen[first:last] - start])
        drawn: Vectors = np.concatenate(parts)
        return drawn

    def encode(self, encoders: Sequence[Encoder]) -> None:
        """Encode the missing shards with one thread per encoder; shows progress and the remaining time."""
        missing = self.missing
        todo, lock, stop = iter(missing), threading.Lock(), threading.Event()
        sizes = {start: min(SHARD, len(self) - start) for start in missing}
        already = len(self) - sum(sizes.values())
        with progress("encoding", "passages", total=len(self), done=already) as advance:

            def work(encoder: Encoder) -> None:
                while not stop.is_set():
                    with lock:
                        start = next(todo, None)
                    if start is None:
                        return
                    self._encode(encoder, start, sizes[start])
                    with lock:
                        advance(sizes[start])

            with ThreadPoolExecutor(len(encoders), thread_name_prefix="encode") as threads:
                try:
                    for done in as_completed([threads.submit(work, encoder) for encoder in encoders]):
                        done.result()
                finally:
                    stop.set()

    def _encode(self, encoder: Encoder, start: int, size: int) -> None:
        records = (self._store.record(position) for position in range(start, start + size))
        vectors = encoder.encode_passages((record["title"], record["text"]) for record in records)
        with atomic_write(self._path(start)) as stream:
            np.save(stream, vectors)

    @property
    def _starts(self) -> range:
        return range(0, len(self), SHARD)

    def _path(self, start: int) -> Path:
        return self._directory / f"{start:010d}.npy"
