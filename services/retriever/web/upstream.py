"""Asks a search engine: politely, within the budget, in bounded time and bytes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from research.errors import ServiceBusyError, ServiceError
from research.http.service import Answer, HttpService, first_fault
from research.http.tries import FAILURES, retry_after
from research.settings.retriever import WebConfig
from services.retriever.web.budget import Budget
from services.retriever.web.engines.engine import Engine, EngineBusyError, Found
from services.retriever.web.refusals import account_spent, engine_busy, engine_failed, key_refused, query_rejected
from services.retriever.web.user_agent import user_agent
from services.web.errors import HttpError

_RETRIES = 2
# After 429 without `Retry-After`; as long again as the one before while the engine goes on to say so.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 60.0
# Twenty results are some tens of kilobytes.
_MOST_BYTES = 4_000_000
_TOLD_CHARS = 1000
_OF_THE_QUERY = (400, 413, 414, 422)


class Upstream(HttpService):
    """One search engine. Every try counts in the budget; redirects are not followed.

    Args:
        key: in headers only; it appears in no message.
    """

    kind = "web"
    _tells_ids = False  # ours are nobody's business
    _max_answer_bytes = _MOST_BYTES

    def __init__(self, engine: Engine, config: WebConfig, key: str | None, budget: Budget) -> None:
        super().__init__(
            config.address or engine.address,
            name=engine.name,
            timeout=config.timeout,
            retries=_RETRIES,
            at_once=config.at_once,
        )
        self._client.headers["User-Agent"] = user_agent(config.contact)
        if key is not None:
            self._client.headers.update(engine.key_headers(key))
        self._engine, self._key, self._budget = engine, key, budget
        self._interval = config.min_interval
        self._next = self._resumes = 0.0  # by time.monotonic
        self._own_pause = _PAUSE_SECONDS

    async def find(self, query: str, top_k: int) -> list[Found]:
        """The results of a query, at most `top_k`, best first.

        Raises:
            HttpError: in the words of `refusals`.
        """
        ask = self._engine.ask(query, top_k)
        try:
            answer, headers = await self.request(ask.method, ask.path, json=ask.json)
            return self._engine.read(answer, headers)[:top_k]
        except EngineBusyError as error:
            self._pause(error.seconds)
            raise engine_busy(self._told(error), error.seconds) from error
        except ServiceBusyError as error:
            raise engine_busy(self._told(error), error.retry_after) from error
        except ServiceError as error:
            raise engine_failed(self._told(error)) from error
        except (ValueError, RecursionError) as error:
            raise engine_failed(self._told(self.nonsense(first_fault(error)))) from error

    async def _exchange(
        self, method: str, path: str, body: bytes | None, limit: float, name: str | None = None
    ) -> Answer:
        await self._take_turn()
        await self._budget.charge()
        answer = await super()._exchange(method, path, body, limit, name)
        if answer.status in (429, 503) and (seconds := retry_after(answer.headers)) is not None:
            self._pause(seconds)
            self._require_short_pause(f"it answered {answer.status}")
        elif answer.status == 429:
            self._pause_unasked()
            self._require_short_pause("it answered 429")
        elif answer.status < 400:
            self._own_pause = _PAUSE_SECONDS
        return answer

    def _decoded(self, path: str, name: str, answer: Answer) -> Any:
        if 400 <= answer.status < 500 and answer.status != 429:
            raise self._refusal(answer)
        return super()._decoded(path, name, answer), answer.headers

    async def _take_turn(self) -> None:
        """Wait for the interval between requests.

        Raises:
            ServiceBusyError: the engine wants a pause, which is waited for as any other.
            EngineBusyError: it wants one that is too long for that.
        """
        self._require_no_pause()
        now = time.monotonic()
        begins = max(now, self._next)
        self._next = begins + self._interval
        await asyncio.sleep(begins - now)
        self._require_no_pause()  # one may have begun meanwhile

    def _require_no_pause(self) -> None:
        self._require_short_pause("it was asked before")
        if (left := self._resumes - time.monotonic()) > 0:
            raise ServiceBusyError(f"{self._name} wants a pause, of which {left:.1f} s are left", 429, left)

    def _require_short_pause(self, why: str) -> None:
        if (left := self._resumes - time.monotonic()) > self._timeout:
            raise EngineBusyError(f"{why} and wants a pause, of which {left:.0f} s are left", left)

    def _pause(self, seconds: float) -> None:
        self._resumes = max(self._resumes, time.monotonic() + seconds)

    def _pause_unasked(self) -> None:
        """Pause for longer than last time, unless this is another answer to what was sent before the pause."""
        if time.monotonic() >= self._resumes:
            self._pause(self._own_pause)
            self._own_pause = min(2 * self._own_pause, _LONGEST_PAUSE_SECONDS)

    def _refusal(self, answer: Answer) -> HttpError:
        """By the words of the engine alone: an error of ours has the query in it, too."""
        FAILURES.labels(self.kind, "refused").inc()
        status, text = answer.status, answer.text
        told = self._told(f"{self._name} answered {status}: {text}")
        if self._engine.is_spent(status, text):
            return account_spent(told)
        if self._engine.refuses_key(status, text):
            return key_refused(told)
        return query_rejected(told) if status in _OF_THE_QUERY else engine_failed(told)

    def _told(self, error: Exception | str) -> str:
        """The words of an error: without the address, and without the key, should the engine have repeated it."""
        told = str(error).replace(self.url, "web.address")
        return (told.replace(self._key, "[key]") if self._key else told)[:_TOLD_CHARS]
