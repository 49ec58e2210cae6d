"""A JSON service over HTTP: each try has a total time-out, answers are bounded, and what is no answer is an error."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import aiohttp
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport
from pydantic import TypeAdapter, ValidationError

from research.descriptors import connections_each
from research.errors import ServiceBusyError, ServiceError, ServiceRefusalError
from research.http import request_id
from research.http.tries import FAILURES, retry_after, tries

# Several times what our services send at most (`retriever.max_answer_bytes`, or all tokens of a long context).
MAX_ANSWER_BYTES = 64_000_000
READY_TIMEOUT_SECONDS = 5.0  # for a server's reports about itself
_CONNECT_SECONDS = 5.0
_RETRIED_STATUSES = frozenset({500, 502, 503, 504})
_AS_MANY_AS_NEEDED = httpx.Limits(max_connections=0)  # aiohttp reads 0 as unlimited; None would be 100
_TOLD_CHARS = 500

Form = TypeVar("Form")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, whole."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        return self.content[: 4 * _TOLD_CHARS].decode("utf-8", "replace")[:_TOLD_CHARS]


class HttpService:
    """One service; retries are limited, and so are requests at once.

    Args:
        name: in messages.
        timeout: seconds for one try, from the first byte that is sent to the last that is received.
        retries: further tries after a transient error.
        token: sent as a bearer token.
        at_once: the most requests under way; the others wait here. None: as many as descriptors allow if this is the
            only service that many requests go to.
        busy_timeout: seconds for which a service is waited for that says it is busy. Default: `timeout`.
    """

    kind: ClassVar[str] = "other"  # in counters
    _retries_timeouts = True
    _retried_statuses = _RETRIED_STATUSES
    # Asking again is in vain, and so is going on without an answer.
    _final_statuses: ClassVar[frozenset[int]] = frozenset()
    _max_answer_bytes = MAX_ANSWER_BYTES
    _tells_ids = True

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout: float,
        retries: int,
        token: str | None = None,
        at_once: int | None = None,
        busy_timeout: float | None = None,
    ) -> None:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.url = url.rstrip("/")
        self._name = name
        self._timeout = timeout
        self._retries = retries
        self._busy_timeout = timeout if busy_timeout is None else busy_timeout
        self._slots = asyncio.Semaphore(at_once or connections_each(1))
        self._client = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(None, connect=min(timeout, _CONNECT_SECONDS)),
            headers=headers,
            # httpx's own pool gets slower the more requests are in flight (benchmarks/http_client.py).
            transport=AiohttpTransport(limits=_AS_MANY_AS_NEEDED),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.aclose()

    async def check_ready(self, limit: float = READY_TIMEOUT_SECONDS) -> None:
        """Raise ServiceError if the service does not report that it is ready within `limit` seconds."""
        try:
            answer = await self._exchange("GET", "/readyz", None, limit)
        except ServiceError as error:
            raise ServiceError(
                f"{self._name} at {self.url} does not answer ({error.__cause__ or error})", reason=error.reason
            ) from error
        if answer.status != 200:
            told = f"{self._name} at {self.url} is not ready: {answer.text[:200]}"
            raise ServiceError(told, answer.status, reason=f"http_{answer.status}")

    async def request(self, method: str, path: str, *, json: Any = None, limit: float | None = None) -> Any:
        """Send a request and return the decoded answer, each try within `limit` seconds (default: the service's own).

        Raises:
            ServiceBusyError: the service was busy (429, or 503 with `Retry-After`) for all of `busy_timeout`.
            ServiceRefusalError: the service refuses until a person changes something there.
            ServiceError: the service could not be reached, answered with any other error, or with what is no JSON.
        """
        async with self._slots:
            return await self._send(method, path, json, limit or self._timeout)

    async def request_as(
        self, form: TypeAdapter[Form], method: str, path: str, *, json: Any = None, limit: float | None = None
    ) -> Form:
        """Like `request`; an answer of another form raises ServiceError, too."""
        return self.as_form(form, await self.request(method, path, json=json, limit=limit))

    def as_form(self, form: TypeAdapter[Form], answer: Any) -> Form:
        """An answer in its form; raises ServiceError if it has another."""
        try:
            return form.validate_python(answer, strict=True)
        except (ValidationError, RecursionError) as error:
            raise self.nonsense(first_fault(error)) from error

    def nonsense(self, why: str) -> ServiceError:
        """The error for an answer that is none."""
        FAILURES.labels(self.kind, "nonsense").inc()
        return ServiceError(f"{self._name} at {self.url} answered in an unknown form ({why})", reason="nonsense")

    async def _send(
        self,
        method: str,
        path: str,
        json: Any,
        limit: float,
        *,
        name: str | None = None,
        on_try: Callable[[bool], None] = lambda _: None,
    ) -> Any:
        """As `request`, besides the limit of requests at once.

        Args:
            name: the id of the request. Default: of the one that this task works on.
            on_try: called with True when a try begins, and with False when it has failed.
        """
        body = None if json is None else orjson.dumps(json)
        name = name or request_id.current() or request_id.new()
        try:
            async for attempt in tries(
                self.kind, retries=self._retries, busy_seconds=self._busy_timeout, is_transient=self._is_transient
            ):
                with attempt:
                    on_try(True)
                    try:
                        return self._decoded(path, name, await self._exchange(method, path, body, limit, name))
                    except ServiceError:
                        on_try(False)
                        raise
        except ServiceError as error:
            FAILURES.labels(self.kind, error.reason).inc()
            raise
        raise AssertionError("the last error is raised")

    def _is_transient(self, error: ServiceError) -> bool:
        if error.status is not None:
            return error.status in self._retried_statuses
        return error.reason == "unreachable" or (error.reason in ("timeout", "disconnected") and self._retries_timeouts)

    async def _exchange(
        self, method: str, path: str, body: bytes | None, limit: float, name: str | None = None
    ) -> Answer:
        """One try: whatever was answered, whole. Raises ServiceError if nothing was, or too much."""
        name = name or request_id.current() or request_id.new()
        headers = {request_id.HEADER: name} if self._tells_ids else {}
        told = f"{self._name} at {self.url} cannot be reached"
        try:
            async with asyncio.timeout(limit if math.isfinite(limit) else None):
                async with self._client.stream(method, path, content=body, headers=headers) as answer:
                    content = bytearray()
                    async for piece in answer.aiter_bytes():
                        content += piece
                        if len(content) > self._max_answer_bytes:
                            raise ServiceError(
                                f"{self._name} at {self.url}{path} answered more than {self._max_answer_bytes} bytes",
                                reason="nonsense",
                            )
                    return Answer(answer.status_code, answer.headers, bytes(content))
        except TimeoutError as error:
            why = f"no whole answer within {limit:g} s"
            raise ServiceError(f"{told} ({why}; request {name}); is it running?", reason="timeout") from error
        # What is no HTTP at all is not translated by the transport.
        except (httpx.HTTPError, aiohttp.ClientError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise ServiceError(f"{told} ({why}; request {name}); is it running?", reason=_reason(error)) from error

    def _decoded(self, path: str, name: str, answer: Answer) -> Any:
        """The JSON of an answer. Raises ServiceError if it is an error, or no JSON."""
        where = f"{self._name} at {self.url}{path}"
        if not 200 <= (status := answer.status) < 300:
            told, asked = f"{where} answered {status}: {answer.text} (request {name})", retry_after(answer.headers)
            if status == 429 or (status == 503 and asked is not None):
                raise ServiceBusyError(told, status, asked)
            if status in self._final_statuses:
                raise ServiceRefusalError(told, status, reason="refused")
            raise ServiceError(told, status, reason=f"http_{status}" if status in _RETRIED_STATUSES else "refused")
        kind = answer.headers.get("Content-Type", "json")
        try:
            if "json" not in kind.lower():
                raise ValueError(f"its Content-Type is {kind[:100]}")
            return orjson.loads(answer.content)
        except ValueError as error:
            told = f"{where} answered {status} with what is no JSON ({error}; request {name})"
            raise ServiceError(told, reason="nonsense") from error


def _reason(error: Exception) -> str:
    """Why there is no answer: only what is `unreachable` has not received the request."""
    # The transport calls whatever happens to a connection a time-out of connecting.
    cause = error.__cause__ or error
    if isinstance(cause, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return "unreachable"
    return "timeout" if isinstance(cause, TimeoutError) else "disconnected"


def first_fault(error: ValueError | RecursionError) -> str:
    """Where an answer differs from its form; not what stands there, which may be long."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'answer'}: {fault['msg']}"
