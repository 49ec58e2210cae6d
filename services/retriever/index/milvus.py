"""Vectors in Milvus, for more than one host; an embedded database file (milvus-lite) works the same way.

The manifest holds the address and the collection; `MILVUS_TOKEN` holds a token, if the cluster asks for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.errors import AssetError
from services.retriever.index.vector_index import Positions
from services.retriever.types import Vectors
from services.web.auth import environment_secret

TOKEN = "MILVUS_TOKEN"

_POSITION, _VECTOR = "position", "vector"
_TIMEOUT_SECONDS = 30.0
# Keeps a message under its limit of 64 MB, up to 4,096 dimensions.
_INSERT_ROWS = 2000


@dataclass(frozen=True, slots=True)
class MilvusCollection:
    """Where the vectors of an index are: `uri` of a cluster or of a `.db` file, and the collection's name."""

    uri: str
    collection: str


class MilvusVectors:
    """A collection, searched for inner products.

    Raises:
        AssetError: Milvus is unavailable, or lacks the collection.
    """

    def __init__(self, where: MilvusCollection) -> None:
        from pymilvus import MilvusException

        self._collection = where.collection
        try:
            self._client = _connect(where.uri)
            self._client.load_collection(where.collection)
            self.count = _count(self._client, where.collection)
            fields = self._client.describe_collection(where.collection)["fields"]
        except (MilvusException, OSError) as error:
            raise AssetError(
                f"cannot open the Milvus collection {where.collection!r} at {where.uri}: {error}; "
                "is Milvus running, and was the index built into it with `research index`?"
            ) from error
        self.dimension = next(int(field["params"]["dim"]) for field in fields if field["name"] == _VECTOR)

    def search(self, vectors: Vectors, top_k: int) -> tuple[Vectors, Positions]:
        """Find the nearest; see `VectorIndex.search`."""
        found = self._client.search(
            self._collection,
            data=list(vectors),
            limit=min(top_k, self.count),
            anns_field=_VECTOR,
            search_params={"metric_type": "IP"},
            output_fields=[_POSITION],
            timeout=_TIMEOUT_SECONDS,
        )
        scores = np.full((len(vectors), min(top_k, self.count)), -np.inf, dtype=np.float32)
        positions = np.full(scores.shape, -1, dtype=np.int64)
        for row, hits in enumerate(found):
            for rank, hit in enumerate(hits):
                scores[row, rank], positions[row, rank] = hit["distance"], hit[_POSITION]
        return scores, positions


def collection_prefix(index: str) -> str:
    """The prefix of the names of an index's collections, and of no others."""
    readable = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in index)
    return f"r_{readable}_{hashlib.sha256(index.encode()).hexdigest()[:8]}_"


def drop_collections(uri: str, prefix: str, keep: set[str]) -> None:
    """Drop the collections that former builds left under a prefix.

    Raises:
        AssetError: Milvus is unavailable or refuses.
    """
    from pymilvus import MilvusException

    try:
        client = _connect(uri)
        for name in client.list_collections():
            if name.startswith(prefix) and name not in keep:
                client.drop_collection(name)
        client.close()
    except (MilvusException, OSError) as error:
        raise AssetError(f"cannot drop old collections in Milvus at {uri}: {error}") from error


def write_milvus(where: MilvusCollection, shards: Iterable[Vectors], dimension: int, *, exact: bool) -> None:
    """Fill a new collection; one of that name, left by a killed build, is dropped first.

    Args:
        where: the collection.
        shards: its vectors, in order of position.
        dimension: of the vectors.
        exact: compare with every vector (Milvus's FLAT), or let Milvus choose an index.

    Raises:
        AssetError: Milvus is unavailable or refuses.
    """
    from pymilvus import DataType, MilvusClient, MilvusException

    try:
        client = _connect(where.uri)
        # 1. Create the collection.
        if client.has_collection(where.collection):
            client.drop_collection(where.collection)
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(_POSITION, DataType.INT64, is_primary=True)
        schema.add_field(_VECTOR, DataType.FLOAT_VECTOR, dim=dimension)
        index = client.prepare_index_params()
        index.add_index(_VECTOR, index_type="FLAT" if exact else "AUTOINDEX", metric_type="IP")
        client.create_collection(where.collection, schema=schema, index_params=index)
        # 2. Insert the vectors.
        position = 0
        for shard in shards:
            for start in range(0, len(shard), _INSERT_ROWS):
                rows = shard[start : start + _INSERT_ROWS]
                client.insert(
                    where.collection,
                    [{_POSITION: position + row, _VECTOR: vector} for row, vector in enumerate(rows)],
                )
                position += len(rows)
        client.flush(where.collection)
        client.close()
    except (MilvusException, OSError) as error:
        raise AssetError(f"cannot write the Milvus collection {where.collection!r} at {where.uri}: {error}") from error


def _connect(uri: str) -> Any:
    from pymilvus import MilvusClient

    return MilvusClient(uri, token=environment_secret(TOKEN) or "", timeout=_TIMEOUT_SECONDS)


def _count(client: Any, collection: str) -> int:
    return int(
        client.query(collection, filter="", output_fields=["count(*)"], consistency_level="Strong")[0]["count(*)"]
    )
