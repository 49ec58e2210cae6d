"""An index that cannot be opened, because its disk does not answer, keeps no order and no lock for ever."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import services.retriever.retriever as limits
from services.retriever.batching.watch import StageWatch
from services.retriever.index.search_index import SearchIndex
from services.retriever.retriever import Retriever


def test_a_reload_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = threading.Event()
    opened = SimpleNamespace(manifest=SimpleNamespace(revision="new"))

    def hanging(*_: Any) -> Any:
        disk.wait(10)
        return opened

    monkeypatch.setattr(SearchIndex, "open", hanging)
    retriever = Retriever.__new__(Retriever)
    retriever.settings = cast(
        Any,
        SimpleNamespace(
            corpus=SimpleNamespace(index="a"),
            retriever=SimpleNamespace(threads=1),
            encoder=None,
            index_dir=Path("x"),
        ),
    )
    retriever.names, retriever.indexes, retriever.checkpoint = ["a"], cast(Any, {"a": "old"}), cast(Any, None)
    retriever._pipeline = cast(Any, SimpleNamespace(stuck=None))
    retriever._reloading, retriever._opener, retriever.reading = asyncio.Lock(), ThreadPoolExecutor(1), StageWatch()

    async def scenario() -> None:
        monkeypatch.setattr(limits, "RELOAD_SECONDS", 0.1)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await retriever.reload("a")
            assert retriever.indexes == {"a": "old"}
        assert len(retriever._opener._threads) == 1, "a thread more for each order"
        assert retriever.stuck is None, "an hour is not over"
        monkeypatch.setattr(limits, "RELOAD_SECONDS", 10)
        disk.set()
        await retriever.reload("a")

    asyncio.run(scenario())
    assert cast(Any, retriever.indexes) == {"a": opened}


def test_an_index_that_is_opened_for_an_hour_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = Retriever.__new__(Retriever)
    retriever._pipeline, retriever.reading = None, StageWatch()
    with retriever.reading.at_work("opening the index a", 0.0):
        assert (retriever.stuck or "").startswith("the retriever hangs (opening the index a for 0 s)")
    assert retriever.stuck is None
