"""Passages by their id or by the `url` of their row, for clients that open what a search has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import orjson
from numpy.typing import NDArray

from services.retriever.index.passage_store import PassageStore

Record = dict[str, str]

# Of a page that is cut into passages; the longest that a client reads is 250,000 characters.
MOST_PAGE_CHARS = 1_000_000
_MOST_PAGE_PASSAGES = 10_000


@dataclass(frozen=True, slots=True)
class _Table:
    """Hashes of keys in ascending order, and the positions of their passages."""

    hashes: NDArray[np.int64]
    positions: NDArray[np.uint32]

    def find(self, key: str) -> Iterator[int]:
        """Positions of the passages whose key has the same hash, in the order of the corpus."""
        wanted = hash(key)
        first, last = (int(np.searchsorted(self.hashes, wanted, side)) for side in ("left", "right"))
        return map(int, self.positions[first:last])


class PassageLookup:
    """Finds passages of a store. Not to be called from two threads at once.

    The first call of each kind reads the whole column, and keeps twelve bytes for each id or url in memory.
    """

    def __init__(self, store: PassageStore) -> None:
        self._store = store
        self._ids: _Table | None = None
        self._urls: _Table | None = None

    def with_id(self, own_id: str) -> Record | None:
        """The passage of that id, the first if there are several."""
        if self._ids is None:
            self._ids = self._table("id", lambda own: own)
        found = map(self._store.record, self._ids.find(own_id))
        return next((record for record in found if record["id"] == own_id), None)

    def with_url(self, url: str) -> list[Record]:
        """The passages of that page in the order of the corpus, up to `MOST_PAGE_CHARS` of text; empty if unknown."""
        if self._urls is None:
            self._urls = self._table("fields", _url)
        page: list[Record] = []
        room = MOST_PAGE_CHARS
        for position in islice(self._urls.find(url), _MOST_PAGE_PASSAGES):
            record = self._store.record(position)
            if _url(record.get("fields")) != url:
                continue
            record["text"] = record["text"][:room]
            room -= len(record["text"])
            page.append(record)
            if room <= 0:
                break
        return page

    def _table(self, column: str, key_of: Callable[[str | None], str | None]) -> _Table:
        hashes, positions = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
        for start, values in self._store.column(column):
            keys = [(row, key) for row, key in enumerate(map(key_of, values), start=start) if key is not None]
            hashes.append(np.fromiter((hash(key) for _, key in keys), np.int64, len(keys)))
            positions.append(np.fromiter((row for row, _ in keys), np.uint32, len(keys)))
        unsorted = np.concatenate(hashes)
        order = np.argsort(unsorted, kind="stable")
        return _Table(unsorted[order], np.concatenate(positions)[order])


def _url(fields: str | None) -> str | None:
    """What a row says of its page, of the JSON that the store keeps."""
    if fields is None or '"url"' not in fields:
        return None
    url = orjson.loads(fields).get("url")
    return url if isinstance(url, str) else None
