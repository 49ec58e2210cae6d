"""Answers to earlier queries, bounded by their size."""

from __future__ import annotations

import sys

from cachetools import LRUCache

from services.retriever.types import HitDicts

Key = tuple[str, str, int]

# A dict, its four values without their texts, and its place in a list, in CPython 3.11; measured with tracemalloc.
_HIT_OVERHEAD_BYTES = 230


class ResultCache:
    """Evicts the least recently used answers. A new revision of an index has new keys, so no stale answer is found.

    Args:
        max_bytes: of queries and hits together; 0 caches nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._hits: LRUCache[Key, tuple[HitDicts, int]] = LRUCache(max_bytes, getsizeof=lambda entry: entry[1])
        self.found = 0
        self.missed = 0

    def get(self, key: Key) -> HitDicts | None:
        """The hits cached under `key`; do not change them."""
        entry = self._hits.get(key)
        if entry is None:
            self.missed += 1
            return None
        self.found += 1
        return entry[0]

    def put(self, key: Key, hits: HitDicts) -> None:
        """Cache hits, unless they alone are larger than the cache."""
        size = _size_of(key, hits)
        if size <= self._hits.maxsize:
            self._hits[key] = hits, size

    @property
    def size_bytes(self) -> int:
        """The size of the cache, by the same estimate as `max_bytes`."""
        return int(self._hits.currsize)


def _size_of(key: Key, hits: HitDicts) -> int:
    texts = sum(sys.getsizeof(value) for hit in hits for value in hit.values() if isinstance(value, str))
    return sys.getsizeof(key[1]) + texts + _HIT_OVERHEAD_BYTES * (len(hits) + 1)
