"""HTTP clients of the retriever and the policy, with timeouts and bounded retries."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import orjson
from httpx_aiohttp import AiohttpTransport
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from research.descriptors import connections_each
from research.episode.agent import Finish, Generation, Sampling
from research.episode.protocol import SEARCH_END
from research.errors import ConditionsChangedError, ServiceBusyError, ServiceError
from research.pace import Pace
from research.passages import Passage, ScoredPassage
from research.schemas import BroadcastOffer, BroadcastRequest, WeightsRequest, WeightsResponse, WeightsStatus

INITIAL_VERSION = "0"

_RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
_JSON = {"Content-Type": "application/json"}
MAX_BACKOFF_SECONDS = 10.0
_MAX_QUERY_CHARS = 4096  # the default of `retriever.max_query_chars`; encoders read far less
_READY_TIMEOUT_SECONDS = 5.0  # for a server's reports about itself
_CONNECT_SECONDS = 5.0
# A generation is over when it has its tokens, or when its deadline has passed (`PolicyClient.generate`).
_NO_TIMEOUT = httpx.Timeout(None, connect=_CONNECT_SECONDS)
_AS_MANY_AS_NEEDED = httpx.Limits(max_connections=0)  # aiohttp reads 0 as unlimited; None would be 100


class HttpService:
    """A JSON service over HTTP; every request has a timeout, retries are limited, and so are requests at once.

    `at_once`: the most requests under way; the others wait here. None: as many as descriptors allow if this is the
    only service that many requests go to.
    """

    _retries_timeouts = True
    _retried_statuses = _RETRIED_STATUSES

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout: float,
        retries: int,
        token: str | None = None,
        at_once: int | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        self._name = name
        self._retries = retries
        self._slots = asyncio.Semaphore(at_once or connections_each(1))
        self._client = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
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

    async def check_ready(self, limit: float = _READY_TIMEOUT_SECONDS) -> None:
        """Raise ServiceError if the service does not report that it is ready within `limit` seconds."""
        try:
            answer = await self._client.get("/readyz", timeout=limit)
        except httpx.HTTPError as error:
            raise ServiceError(
                f"{self._name} at {self.url} does not answer ({str(error) or type(error).__name__})"
            ) from error
        if answer.status_code != 200:
            raise ServiceError(f"{self._name} at {self.url} is not ready: {answer.text[:200]}", answer.status_code)

    async def request(self, method: str, path: str, *, json: Any = None, limit: float | None = None) -> Any:
        """Send one request and return the decoded answer, within `limit` seconds (default: the service's own).

        Raises:
            ServiceBusyError: the service still answered 429 after the last retry.
            ServiceError: the service could not be reached or answered with any other error.
        """
        async with self._slots:
            return await self._send(method, path, json, limit)

    async def _send(self, method: str, path: str, json: Any, limit: float | httpx.Timeout | None) -> Any:
        body = None if json is None else orjson.dumps(json)
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(self._is_transient),
                stop=stop_after_attempt(self._retries + 1),
                wait=wait_random_exponential(multiplier=0.25, max=MAX_BACKOFF_SECONDS),
                reraise=True,
            ):
                with attempt:
                    answer = await self._client.request(
                        method, path, content=body, headers=_JSON, timeout=limit or self._client.timeout
                    )
                    answer.raise_for_status()
            return orjson.loads(answer.content)
        except httpx.HTTPStatusError as error:
            status, detail = error.response.status_code, error.response.text[:500]
            kind = ServiceBusyError if status == 429 else ServiceError
            raise kind(f"{self._name} at {self.url}{path} answered {status}: {detail}", status) from error
        except (httpx.HTTPError, ValueError) as error:
            raise ServiceError(
                f"{self._name} at {self.url} cannot be reached ({str(error) or type(error).__name__}); is it running?"
            ) from error

    def _is_transient(self, error: BaseException) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code in self._retried_statuses
        if isinstance(error, httpx.TimeoutException):
            return self._retries_timeouts
        return isinstance(error, httpx.TransportError)


class RetrieverClient(HttpService):
    """Client for the retriever's native dialect.

    `revision`, if set, is the index revision that must answer.
    """

    revision: str | None = None

    def __init__(self, url: str, *, timeout: float = 30.0, retries: int = 4, at_once: int | None = None) -> None:
        super().__init__(url, name="the retriever", timeout=timeout, retries=retries, at_once=at_once)

    async def search(self, query: str, top_k: int) -> list[Passage]:
        return [found.passage for found in await self.search_scored(query, top_k)]

    async def search_scored(self, query: str, top_k: int) -> list[ScoredPassage]:
        """Search; a query without end, as models may write it, is cut.

        Raises:
            ServiceError: as `request` does.
            ConditionsChangedError: an index revision other than `revision` answered.
        """
        body = await self.request("POST", "/search", json={"query": query[:_MAX_QUERY_CHARS], "top_k": top_k})
        if self.revision is not None and body["revision"] != self.revision:
            raise ConditionsChangedError(
                f"revision {body['revision']} of the index {body['index']} answered instead of {self.revision}: "
                "the retriever loaded a new one in the meantime"
            )
        return [
            ScoredPassage(Passage(hit["id"], hit["title"], hit["text"]), hit["score"]) for hit in body["results"][0]
        ]


class PolicyClient(HttpService):
    """Samples tokens from one policy server through vLLM's token-in/token-out route.

    `weight_version` salts the prefix cache, so that keys and values of other weights are never reused. `timeout` is
    the time without a sign of life, in seconds, after which the server counts as gone; a turn may take longer.
    """

    weight_version = INITIAL_VERSION

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 120.0,
        retries: int = 4,
        api_key: str | None = None,
        at_once: int | None = None,
    ) -> None:
        super().__init__(url, name="the policy", timeout=timeout, retries=retries, token=api_key, at_once=at_once)
        self._patience, self._pace = timeout, Pace(timeout)
        self._under_way: dict[str, bool] = {}  # by name; whether it was told to end

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        """Sample one turn.

        The server ends a turn that does not end in its time (`research.pace`) and returns what it has: `Finish.TIME`.
        It is not asked again, which would only take as long again.

        Raises ServiceError, as `request` does, and also if the server shows no sign of life while it should sample.
        """
        async with self._slots:
            return await self._generate(prompt_ids, max_tokens, sampling)

    async def _generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        name, started = uuid.uuid4().hex, time.monotonic()
        body = {
            "request_id": name,
            "token_ids": list(prompt_ids),
            "sampling_params": sampling_params(max_tokens, sampling),
            "cache_salt": self.weight_version,
        }
        asked = asyncio.create_task(self._send("POST", "/inference/v1/generate", body, _NO_TIMEOUT))
        self._under_way[name] = False
        try:
            in_time = await self._until_over(asked, name, max_tokens)
            generation = _generation(asked.result(), cut=self._under_way[name])
        finally:
            del self._under_way[name]
            asked.cancel()
        if not in_time and not generation.token_ids:
            raise ServiceError(f"{self._name} at {self.url} sampled no token in the whole time that a generation has")
        self._pace.learn(len(generation.token_ids), time.monotonic() - started)
        return generation

    async def cut(self) -> None:
        """Make the server end every turn under way and return what it has; raises ServiceError if it is gone."""
        if self._under_way:
            await self._end(list(self._under_way))

    async def _until_over(self, asked: asyncio.Task[Any], name: str, max_tokens: int) -> bool:
        """Wait until a turn has ended; False if it was told to end because its time is over."""
        began = time.monotonic()
        while (left := began + self._pace.seconds_for(max_tokens) - time.monotonic()) > 0:
            await asyncio.wait({asked}, timeout=min(left, self._patience))
            if asked.done():
                return True
            await self.check_ready(self._patience)  # a turn may take long; a server that is gone may not
        await self._end([name])
        await asyncio.wait({asked}, timeout=self._patience)
        if not asked.done():
            raise ServiceError(f"{self._name} at {self.url} does not end a generation that takes too long")
        return False

    async def _end(self, names: list[str]) -> None:
        self._under_way |= dict.fromkeys(names, True)
        ids = [f"generate-tokens-{name}" for name in names]  # the server calls them so
        try:
            answer = await self._client.post("/inference/v1/abort_requests", json={"request_ids": ids})
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._name} at {self.url} does not end a generation ({error!r})") from error


def _generation(body: dict[str, Any], *, cut: bool) -> Generation:
    """What a server answered; `cut`: whether it was told to end the turn."""
    choice = body["choices"][0]
    spans = choice["weight_versions"] or []
    was_cut = cut and choice["finish_reason"] == "abort"
    return Generation(
        token_ids=choice["token_ids"],
        logprobs=[entry["logprob"] for entry in choice["logprobs"]["content"]],
        versions=[span["version"] for span in spans for _ in range(span["start"], span["end"])],
        finish=Finish.TIME if was_cut else finish_of(choice["finish_reason"], choice["stop_reason"]),
    )


class PolicyAdmin(HttpService):
    """Hands new weights to one policy server; needs its admin token."""

    # An update that fails or hangs would only do so again, and freeze the server each time.
    _retries_timeouts = False
    _retried_statuses = _RETRIED_STATUSES - {500, 504}

    def __init__(self, url: str, *, token: str, timeout: float = 300.0, retries: int = 2) -> None:
        super().__init__(url, name="the policy's weight route", timeout=timeout, retries=retries, token=token)

    async def update_weights(self, request: WeightsRequest) -> WeightsResponse:
        return WeightsResponse.model_validate(await self.request("POST", "/admin/weights", json=request.model_dump()))

    async def offer(self, offer: BroadcastOffer) -> WeightsStatus:
        """What is served, by a server that would take such weights; raises ServiceError if it would not."""
        return WeightsStatus.model_validate(
            await self.request("POST", "/admin/weights/offer", json=offer.model_dump(), limit=_READY_TIMEOUT_SECONDS)
        )

    async def receive(self, request: BroadcastRequest) -> WeightsResponse:
        """Make the server's workers join a group and serve what they receive there."""
        return WeightsResponse.model_validate(
            await self.request("POST", "/admin/weights/broadcast", json=request.model_dump())
        )

    async def weights(self) -> WeightsStatus:
        return WeightsStatus.model_validate(await self.request("GET", "/admin/weights", limit=_READY_TIMEOUT_SECONDS))

    async def digests(self) -> dict[str, str]:
        """SHA-256 of each weight tensor, as the server computes with it."""
        digests: dict[str, str] = await self.request("GET", "/admin/weights/digests")
        return digests


def sampling_params(max_tokens: int, sampling: Sampling) -> dict[str, Any]:
    """vLLM's sampling parameters for one turn, with each sampled token's log-probability and a stop at given texts."""
    return {
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "seed": sampling.seed,
        "logprobs": 0,
        "stop": list(sampling.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }


def finish_of(finish_reason: str | None, stop_reason: str | int | None) -> Finish:
    """Translate vLLM's reasons; raises ServiceError if the request did not end properly (aborted, error)."""
    if finish_reason == "length":
        return Finish.LENGTH
    if finish_reason == "stop":
        return Finish.SEARCH if stop_reason == SEARCH_END else Finish.EOS
    raise ServiceError(f"the policy ended a generation with {finish_reason!r}; it may be shutting down")
