"""What `/info` tells."""

from __future__ import annotations

from pydantic import BaseModel

from services.retriever.service import Retriever


class Limits(BaseModel):
    """Beyond these a request is refused."""

    top_k: int
    query_chars: int
    query_tokens: int
    queue: int


class RetrieverInfo(BaseModel):
    """Answer of `GET /info`. Query tokens beyond the limit are cut; all else beyond a limit is an error."""

    encoder: str
    backend: str
    dimension: int
    pooling: str
    index: str
    revision: str
    passages: int
    built_with: str
    created: str
    limits: Limits


def describe(retriever: Retriever) -> RetrieverInfo:
    """Collect the answer; nothing in it changes while the service runs."""
    settings, manifest = retriever.settings, retriever.index.manifest
    return RetrieverInfo(
        encoder=settings.encoder.name,
        backend=settings.encoder.backend,
        dimension=manifest.recipe.dimension,
        pooling=manifest.recipe.pooling,
        index=settings.corpus.index,
        revision=manifest.recipe.revision,
        passages=manifest.count,
        built_with=manifest.build_backend,
        created=manifest.created,
        limits=Limits(
            top_k=settings.retriever.max_top_k,
            query_chars=settings.retriever.max_query_chars,
            query_tokens=settings.encoder.max_query_tokens,
            queue=settings.retriever.max_queue,
        ),
    )
