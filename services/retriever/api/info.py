"""What `/info` reports."""

from __future__ import annotations

from research.schemas import IndexInfo, RequestLimits, RetrieverInfo
from services.retriever.index.search_index import SearchIndex
from services.retriever.retriever import Retriever


def describe_index(index: SearchIndex) -> IndexInfo:
    """Summarize the manifest of an index."""
    manifest = index.manifest
    return IndexInfo(
        name=index.name,
        revision=manifest.revision,
        passages=manifest.count,
        structure=manifest.structure.factory if manifest.structure else "Milvus",
        lexical=manifest.recipe.lexical,
        built_with=manifest.build_backend,
        created=manifest.created,
    )


def describe(retriever: Retriever) -> RetrieverInfo:
    """Collect the response."""
    settings = retriever.settings
    return RetrieverInfo(
        encoder=settings.encoder.name,
        backend=settings.encoder.backend,
        dimension=retriever.checkpoint.dimension,
        pooling=retriever.checkpoint.pooling,
        index=settings.corpus.index,
        indexes=[describe_index(index) for index in retriever.indexes.values()],
        limits=RequestLimits(
            top_k=settings.retriever.max_top_k,
            query_chars=settings.retriever.max_query_chars,
            query_tokens=settings.encoder.max_query_tokens,
            queue=settings.retriever.max_queue_queries,
        ),
    )
