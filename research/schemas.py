"""The wire contract: the bodies that services and clients exchange, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

NonBlank = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Request(BaseModel):
    """Base of request bodies: an unknown field is an error, so that a typing slip never passes in silence."""

    model_config = ConfigDict(extra="forbid")


class SearchRequest(Request):
    """Body of `POST /search`: one `query` or several `queries`."""

    query: NonBlank | None = Field(None, description="one query", examples=["painter of The Starry Night"])
    queries: Annotated[list[NonBlank], Field(min_length=1, max_length=512)] | None = Field(
        None, description="several queries, answered in order"
    )
    top_k: int = Field(5, ge=1, description="passages a query")

    @model_validator(mode="after")
    def _one_form(self) -> SearchRequest:
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either `query` or `queries`")
        return self


class Hit(BaseModel):
    """One retrieved passage; `score` is the inner product of unit vectors (cosine), higher is closer."""

    id: str
    title: str
    text: str
    score: float


class SearchTimings(BaseModel):
    """Seconds that the request spent in each phase (the longest of its queries)."""

    queue: float
    encode: float
    search: float


class SearchResponse(BaseModel):
    """Answer of `POST /search`: `results[i]` are the hits of the i-th query, best first."""

    index: str
    revision: str
    results: list[list[Hit]]
    seconds: SearchTimings


class ServiceStatus(BaseModel):
    """Answer of `/readyz`: 200 with `ready`, or 503 with what is still going on."""

    status: Literal["ready", "loading", "failed"]
    detail: str = ""


class ErrorBody(BaseModel):
    """Every error of ours has this body."""

    error: str
    message: str
