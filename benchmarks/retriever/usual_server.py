"""A server built as Search-R1's is: the handler encodes and searches by itself, one request after the other.

Same encoder, same index, same answer as ours; run by load.py as the reference.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from research.config import load_settings
from services.retriever.encoder.checkpoint import open_checkpoint
from services.retriever.encoder.encoder import load_encoder
from services.retriever.index.search_index import SearchIndex


class Body(BaseModel):
    """One query."""

    query: str
    top_k: int = 5


def main(port: int, overrides: list[str]) -> None:
    """Serve until ended."""
    settings = load_settings(overrides=overrides)
    data, threads = settings.paths.data, settings.retriever.threads
    checkpoint = open_checkpoint(settings.encoder.name, data)
    encoder = load_encoder(checkpoint, settings.encoder, settings.encoder.backend, threads, data)
    index = SearchIndex(settings.corpus.index, settings.index_dir, checkpoint, settings.encoder, threads)
    app = FastAPI()
    lock = asyncio.Lock()

    @app.get("/readyz")
    async def readyz() -> str:
        return "ready"

    @app.post("/search")
    async def search(body: Body) -> dict[str, object]:
        async with lock:
            vectors = encoder.encode_queries([body.query])
            return {"results": index.search([body.query], vectors, body.top_k)}

    uvicorn.run(app, port=port, log_level="error")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
