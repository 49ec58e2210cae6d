"""What the web answered, on the disk: a query is paid for once, and a run can be repeated without the web."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from services.retriever.web.engines.engine import Found
from services.retriever.web.lines import Place, SealedLines


class Record:
    """Answers by engine, address, query and number of results, and pages by their address; in memory are only places.

    Args:
        path: of the file.
        engine: its name.
        address: of the engine.
        writable: add to it; or only read.

    Raises:
        AssetError: it cannot be opened.
        ConfigurationError: another process adds to it.
    """

    def __init__(self, path: Path, engine: str, address: str, *, writable: bool) -> None:
        self._engine, self._address = engine, address
        self._lines = SealedLines(path, writable=writable)
        self._places: dict[bytes, Place] = {}
        for place, entry in self._lines.entries():
            if "opened" in entry:
                self._places[_page_key(entry["opened"])] = place  # the last: what may pass is tried again
                continue
            key = _key(entry["engine"], entry["address"], entry["query"], entry["top_k"])
            self._places.setdefault(key, place)  # the first, as whoever asked first was answered

    def __len__(self) -> int:
        return len(self._places)

    @property
    def path(self) -> Path:
        return self._lines.path

    def has(self, query: str, top_k: int) -> bool:
        """Whether a query was answered."""
        return _key(self._engine, self._address, query, top_k) in self._places

    def get(self, query: str, top_k: int) -> list[Found] | None:
        """What a query was answered, or None. Raises AssetError if the line has been spoilt since."""
        place = self._places.get(_key(self._engine, self._address, query, top_k))
        if place is None:
            return None
        return [Found(each["url"], each["title"], each["text"]) for each in self._lines.read(place)["found"]]

    def add(self, query: str, top_k: int, found: Sequence[Found]) -> None:
        """Keep an answer; it is on the disk when this returns. Raises OSError."""
        entry = {
            "engine": self._engine,
            "address": self._address,
            "query": query,
            "top_k": top_k,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "found": [{"url": each.url, "title": each.title, "text": each.text} for each in found],
        }
        place = self._lines.add(entry)
        self._places.setdefault(_key(self._engine, self._address, query, top_k), place)

    def has_page(self, url: str) -> bool:
        """Whether something was kept of a page."""
        return _page_key(url) in self._places

    def page(self, url: str) -> dict[str, Any]:
        """What was kept of a page that has something. Raises AssetError if the line has been spoilt since."""
        return self._lines.read(self._places[_page_key(url)])

    def add_page(self, url: str, outcome: dict[str, Any]) -> None:
        """Keep what became of a page; it is on the disk when this returns. Raises OSError."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._places[_page_key(url)] = self._lines.add({"opened": url, "at": at, **outcome})

    def close(self) -> None:
        self._lines.close()


def _key(engine: str, address: str, query: str, top_k: int) -> bytes:
    return hashlib.sha256(orjson.dumps([engine, address, query, top_k])).digest()[:16]


def _page_key(url: str) -> bytes:
    return hashlib.sha256(orjson.dumps(["opened", url])).digest()[:16]
