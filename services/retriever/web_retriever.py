"""The life cycle of a retriever that searches the web: settings and key checked before the port opens, nothing sent."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from research.errors import ConfigurationError
from research.schemas import IndexInfo, RequestLimits, RetrieverInfo, ServiceStatus, WebInfo
from research.settings import Settings
from services.retriever.batching.metrics import Metrics
from services.retriever.batching.result_cache import ResultCache
from services.retriever.serving import NotReadyError, UnknownIndexError
from services.retriever.types import QueryResult
from services.retriever.web.budget import Budget
from services.retriever.web.engines.by_name import ENGINES
from services.retriever.web.engines.engine import is_page
from services.retriever.web.pages.fetch import Fetcher
from services.retriever.web.pages.opener import PageOpener
from services.retriever.web.pages.reading.reader import Page
from services.retriever.web.record import Record
from services.retriever.web.search import WebSearch
from services.retriever.web.upstream import Upstream
from services.web.auth import environment_secret

_LOADING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Web:
    """The web as an engine shows it; its revision says who is asked and in which form, not what the web has today."""

    name: str
    revision: str


class WebRetriever:
    """The service behind the routes (`Serving`).

    Raises:
        ConfigurationError: an address, a contact or a key is missing.
    """

    def __init__(self, settings: Settings, on_failure: Callable[[], None]) -> None:
        self._engine = engine = ENGINES[settings.retriever.backend]
        self._config = config = settings.web
        limits = settings.retriever
        few = limits.model_copy(update={"max_top_k": min(limits.max_top_k, engine.most_results)})
        self.settings = settings.model_copy(update={"retriever": few})
        self.status = ServiceStatus(status="loading", detail="not started")
        self.failure: Exception | None = None
        self.metrics = Metrics(ResultCache(0), queue_depth=lambda: self._search.depth if self._search else 0)
        self.metrics.add_gauge("web_requests", "Requests sent so far, a page being one.", lambda: self._sent)
        self.metrics.add_gauge("web_spent", "Money spent so far.", lambda: self._budget.spent if self._budget else 0)
        self.metrics.add_gauge("web_replayed", "Queries answered from the record.", lambda: self._replayed)
        self._address = (config.address or engine.address).rstrip("/")
        self._key = self._checked_key()
        told = f"{engine.name} {self._address} {engine.form}"
        self._web = Web(engine.name, hashlib.sha256(told.encode()).hexdigest()[:12])
        self._on_failure = on_failure
        self._budget: Budget | None = None
        self._record: Record | None = None
        self._search: WebSearch | None = None
        self._opener: PageOpener | None = None
        self._loading: asyncio.Task[None] | None = None

    def _checked_key(self) -> str | None:
        """The engine's key, if it is to be asked at all."""
        engine, config = self._engine, self._config
        if not self._address:
            raise ConfigurationError(f"web.address: {engine.name} has no public address; give that of your own")
        if not is_page(self._address):
            raise ConfigurationError("web.address: it is not of the form http://host or https://host")
        if config.replay:
            return None
        if engine.wants_contact and not config.contact:
            raise ConfigurationError(
                f"web.contact: {engine.name} asks programs to say whom to write to; set an e-mail address or a page"
            )
        if engine.key_variable is None:
            return None
        key = environment_secret(engine.key_variable)
        if key is None:
            raise ConfigurationError(f"{engine.key_variable} is not set; set it to your key of {engine.name}")
        return key

    @property
    def stuck(self) -> None:
        """Nothing here can hang: every wait has an end."""
        return

    @property
    def is_full(self) -> bool:
        return self._search is not None and self._search.is_full

    @property
    def most_in_time(self) -> int:
        """At the pace of the interval, with slow answers, if the record has none of them."""
        config, limits = self._config, self.settings.retriever
        each = config.min_interval + config.timeout / config.at_once
        return max(1, int(min(limits.max_queue_queries, limits.max_wait / each)))

    def retry_headers(self) -> dict[str, str]:
        """At the pace that the interval between requests allows."""
        waiting = max((each.depth for each in (self._search, self._opener) if each is not None), default=0)
        return {"Retry-After": str(max(1, round(waiting * self._config.min_interval)))}

    async def health(self) -> ServiceStatus:
        """Ready even if the budget is spent, for what is recorded; the detail says so. Not while the engine fails."""
        if self._search is not None and (fault := self._search.failing) is not None:
            return ServiceStatus(status="failed", detail=fault)
        if self.status.status == "ready" and self._budget is not None and (why := self._budget.exhausted):
            return ServiceStatus(
                status="ready", detail=f"{self.status.detail}: of searches only what is recorded is answered: {why}"
            )
        return self.status

    def start(self) -> None:
        self._loading = asyncio.create_task(self._load(), name="load")

    async def close(self) -> None:
        if self._loading is not None:
            await asyncio.wait([self._loading], timeout=_LOADING_SECONDS)
        # At once: each waits for what is under way, and both have to end before this is killed.
        await asyncio.gather(*(each.close() for each in (self._search, self._opener) if each is not None))
        for file in (self._record, self._budget):
            if file is not None:
                file.close()

    def index(self, name: str | None) -> Web:
        if name not in (None, self._web.name):
            raise UnknownIndexError(f"index: {name!r} is not served; the retriever serves {self._web.name}")
        if self._search is None:
            raise NotReadyError(f"the retriever is {self.status.status}: {self.status.detail}")
        return self._web

    async def search(self, index: Web, texts: Sequence[str], top_k: int) -> list[QueryResult]:
        assert self._search is not None, "an index exists only once it is loaded"
        # A lone surrogate, which JSON can carry and UTF-8 cannot.
        return await self._search.search([text.encode("utf-8", "replace").decode("utf-8") for text in texts], top_k)

    async def open(self, url: str) -> Page:
        """A page of the web, once the retriever has loaded. Raises what `PageOpener.open` raises."""
        assert self._opener is not None, "an index exists only once it is loaded"
        return await self._opener.open(url)

    def info(self) -> RetrieverInfo:
        """The answer of `/info`."""
        limits, config, budget = self.settings.retriever, self._config, self._budget
        served = IndexInfo(
            name=self._web.name,
            revision=self._web.revision,
            passages=0,
            structure="web",
            lexical=False,
            built_with=self._engine.form,
            created="",
        )
        return RetrieverInfo(
            encoder=self._engine.name,
            backend="web",
            dimension=0,
            pooling="none",
            index=self._web.name,
            indexes=[served],
            limits=RequestLimits(
                top_k=limits.max_top_k,
                query_chars=limits.max_query_chars,
                query_tokens=self._engine.most_words or self._engine.most_chars,  # none is shorter than a character
                queue=limits.max_queue_queries,
            ),
            web=WebInfo(
                replay=config.replay,
                recorded=len(self._record) if self._record is not None else 0,
                requests=self._sent,
                max_requests=config.max_requests,
                spent=budget.spent if budget is not None else 0.0,
                max_spend=config.max_spend,
                exhausted=budget.exhausted if budget is not None else None,
            ),
        )

    @property
    def _sent(self) -> int:
        return self._budget.requests if self._budget is not None else 0

    @property
    def _replayed(self) -> int:
        return self._search.replayed if self._search is not None else 0

    async def _load(self) -> None:
        self.status = ServiceStatus(status="loading", detail="the record of answers")
        engine, config, folder = self._engine, self._config, self.settings.paths.data / "web"
        path, writable = config.record or folder / f"{engine.name}.jsonl", not config.replay
        try:
            self._record = record = await asyncio.to_thread(
                partial(Record, path, engine.name, self._address, writable=writable)
            )
            if writable:
                self._budget = await asyncio.to_thread(Budget, folder / f"{engine.name}-requests.jsonl", config)
            self._opener = self._new_opener(record, self._budget)
            self._search = self._new_search(record, self._budget)  # the last: once it is there, requests are answered
        except Exception as error:
            self.failure = error
            self.status = ServiceStatus(status="failed", detail=str(error))
            self._on_failure()
            return
        how = ", from the record alone" if config.replay else ""
        self.status = ServiceStatus(status="ready", detail=f"the web by {engine.name}{how}")

    def _new_search(self, record: Record, budget: Budget | None) -> WebSearch:
        config, limits = self._config, self.settings.retriever
        return WebSearch(
            self._engine,
            record,
            Upstream(self._engine, config, self._key, budget) if budget is not None else None,
            at_once=config.at_once,
            most_waiting=limits.max_queue_queries,
            max_wait=limits.max_wait,
        )

    def _new_opener(self, record: Record, budget: Budget | None) -> PageOpener:
        config, limits = self._config, self.settings.retriever
        fetcher = None
        if budget is not None:
            fetcher = Fetcher(
                partial(budget.charge, price=0.0),  # the engine's price is not that of a page
                timeout=config.timeout,
                min_interval=config.min_interval,
                contact=config.contact,
                at_once=config.at_once,
                private_hosts=config.private_hosts,
                refused_networks=config.refused_networks,
            )
        return PageOpener(
            record,
            fetcher,
            private_hosts=config.private_hosts,
            most_waiting=limits.max_queue_queries,
            max_wait=limits.max_wait,
        )
