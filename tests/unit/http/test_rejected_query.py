"""A query that a search engine rejects is the model's doing: it finds nothing, and no service is at fault."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from research.clients import RetrieverClient
from research.errors import ServiceError
from research.passages import Passage
from research.retrievers import Retrievers
from tests.support.raw_server import RawServer, answer


def searched(status: int, error: str) -> Sequence[Passage]:
    async def search() -> Sequence[Passage]:
        async with (
            RawServer(lambda _: answer({"error": error, "message": "no"}, status)).serving() as url,
            RetrieverClient(url, timeout=5, retries=0) as one,
            Retrievers([url], timeout=5, retries=0) as several,
        ):
            assert await one.search("", 3) == []
            return await several.search("", 3)

    return asyncio.run(search())


def test_it_finds_nothing() -> None:
    assert searched(422, "query_rejected") == []


@pytest.mark.parametrize(
    ("status", "error"), [(422, "invalid_request"), (404, "unknown_index"), (502, "engine_failed")]
)
def test_what_is_wrong_with_every_query_is_told(status: int, error: str) -> None:
    with pytest.raises(ServiceError, match=f"{status}"):
        searched(status, error)
