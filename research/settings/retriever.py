"""`[encoder]`, `[corpus]`, `[retriever]` and `[web]`: what is searched, and the server that searches it."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from research.settings.base import NAME, Name, Port, PositiveInt, Section, without_credentials

Backend = Literal["onnx-int8", "onnx", "torch"]


def _in_shortest_form(host: str) -> str:
    """An IPv6 address has several forms, of which addresses of pages are brought into one."""
    if not host.startswith("["):
        return host
    address, _, port = host[1:].partition("]")
    return f"[{IPv6Address(address)}]{port}"


# A name or an address, as an address of a page has it, and a port if it is not the usual one.
Host = Annotated[
    str,
    StringConstraints(to_lower=True, pattern=r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?$"),
    AfterValidator(_in_shortest_form),
]
Network = Annotated[str, AfterValidator(lambda given: str(ip_network(given)))]
WebBackend = Literal["searxng", "brave", "tavily", "serper", "wikipedia"]


class EncoderConfig(Section):
    """The text encoder of the retriever."""

    name: str = Field(description="`builtin:multilingual-e5-small-enpt`, a hub name, or a checkpoint directory")
    backend: Backend = Field(
        "torch", description="runtime for queries; onnx-int8 is the fastest on a CPU, torch serves CUDA"
    )
    passage_backend: Backend = Field("torch", description="runtime for passages, while an index is built")
    query_prefix: str = Field("query: ", description="text before every query; E5 was trained with one")
    passage_prefix: str = Field("passage: ", description="text before every passage")
    max_query_tokens: PositiveInt = Field(128, description="a longer query is cut")
    max_passage_tokens: PositiveInt = Field(256, description="the encoder sees no more of a passage")


class CorpusConfig(Section):
    """The passages that are searched."""

    name: str = Field(description="`builtin:wikipedia-leads`, or a file or directory of passages (docs/own-data.md)")
    index: str = Field(pattern=NAME, description="name of the index under <paths.data>/indexes")
    index_type: Literal["auto", "flat", "hnsw", "ivf-sq8", "ivf-pq", "ivf-rabitq"] = Field(
        "auto", description="how FAISS keeps the vectors; auto: exact up to 200,000 passages, then ever smaller"
    )
    hybrid: bool = Field(False, description="index words with BM25, too, and fuse both rankings")
    milvus: Annotated[str, without_credentials("MILVUS_TOKEN")] = Field(
        "", description="address of a Milvus cluster, or a .db file, that keeps the vectors; empty: FAISS"
    )

    @model_validator(mode="after")
    def _milvus_has_index_types_of_its_own(self) -> CorpusConfig:
        if self.milvus and self.index_type not in ("auto", "flat"):
            raise ValueError(f"index_type: {self.index_type} belongs to FAISS; with corpus.milvus use flat or auto")
        return self


class RetrieverConfig(Section):
    """The retrieval server."""

    backend: Literal["index", WebBackend] = Field(
        "index",
        description="what is searched: `index`, the passages of `corpus`; or the web, by a search engine (`web`)",
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every network")
    port: Port = Field(8000, description="port to listen on")
    threads: PositiveInt = Field(1, description="threads of the encoder")
    indexes: list[Name] = Field(
        default_factory=list, description="further indexes to serve, of the same encoder; requests name them"
    )
    max_batch_queries: PositiveInt = Field(64, description="most queries that are encoded together")
    max_batch_tokens: PositiveInt = Field(2048, description="most tokens that are encoded together")
    max_queue_queries: PositiveInt = Field(
        4096,
        description="most queries that wait; further ones are refused with 429 (or 503), those of small requests only "
        "if an eighth more wait",
    )
    max_queue_chars: PositiveInt = Field(
        2_000_000, description="most characters of the queries that wait; a request alone may have more"
    )
    max_wait: float = Field(
        300.0, gt=0, description="seconds until a search is given up, with 429 (or 503), and what is left of it dropped"
    )
    coalesce: bool = Field(True, description="equal queries in flight are encoded and searched once")
    cache_mib: int = Field(64, ge=0, description="memory for results of former queries; 0: no cache")
    max_query_chars: PositiveInt = Field(4096, description="longer queries are refused with 422")
    max_top_k: PositiveInt = Field(100, description="a larger top_k is refused with 422")
    max_hits: PositiveInt = Field(25_000, description="queries times top_k per request; more are refused with 422")
    max_answer_bytes: PositiveInt = Field(16_000_000, description="a larger answer is refused with 422")


class WebConfig(Section):
    """The web as what is searched, if `retriever.backend` names a search engine (docs/retriever.md).

    The key is never a setting: `BRAVE_API_KEY`, `TAVILY_API_KEY` or `SERPER_API_KEY`, or a file that `…_FILE` names.
    """

    address: Annotated[str, without_credentials("<ENGINE>_API_KEY")] = Field(
        "", description="of the search engine; empty: the public one, which searxng does not have"
    )
    contact: str = Field(
        "",
        pattern=r"^[ -~]*$",
        description="an e-mail address or a page, sent in the `User-Agent`; Wikipedia's rules ask for one",
    )
    replay: bool = Field(
        False,
        description="answer from the record alone: nothing is sent, and a query that it lacks is refused with 409",
    )
    record: Path | None = Field(
        None, description="file of all answers, which are never asked for again; None: <paths.data>/web/<backend>.jsonl"
    )
    private_hosts: list[Host] = Field(
        default_factory=list,
        description="hosts, with their port unless it is 80 or 443, whose pages are opened though no public address is "
        'theirs: `["wiki.corp", "10.0.0.7:8080"]`',
    )
    refused_networks: list[Network] = Field(
        default_factory=list,
        description="networks of public addresses whose pages are not opened, for they are yours: "
        '`["2a02:8071:1234::/48", "198.51.100.0/24"]`',
    )
    timeout: float = Field(
        10.0,
        gt=0,
        description="seconds for one request, answer included; for a page, with its redirects and robots.txt",
    )
    at_once: PositiveInt = Field(4, description="most requests under way: to the engine, and to hosts of pages")
    min_interval: float = Field(
        0.25, ge=0, description="seconds between the beginnings of two requests to the engine, or to the host of a page"
    )
    price: float = Field(0.0, ge=0, description="of one request to the engine, in your currency; pages cost nothing")
    max_requests: PositiveInt = Field(
        1000,
        description="most requests that are ever sent, restarts included, a page being one; then queries and pages are "
        "refused with 402",
    )
    max_spend: float | None = Field(
        None, ge=0, description="most money that is ever spent, restarts included; None: only requests are counted"
    )

    @model_validator(mode="after")
    def _a_cap_in_money_needs_a_price(self) -> WebConfig:
        if self.max_spend is not None and not self.price:
            raise ValueError("max_spend: without a price nothing is ever spent; set web.price to that of one request")
        return self
