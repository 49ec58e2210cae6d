"""Clients of the retriever and the policy: what they ask, and what counts as an answer."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import orjson
from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from research.episode.agent import Finish, Generation, Sampling
from research.errors import ConditionsChangedError, ServiceError
from research.http import request_id
from research.http.service import READY_TIMEOUT_SECONDS, Answer, HttpService
from research.pace import Pace
from research.passages import Passage, ScoredPassage
from research.schemas import (
    BroadcastOffer,
    BroadcastRequest,
    IndexInfo,
    RetrieverInfo,
    WeightsRequest,
    WeightsResponse,
    WeightsStatus,
)

logger = logging.getLogger(__name__)

INITIAL_VERSION = "0"

# vLLM takes smaller numbers first; who asks `/answer` or an OpenAI route has 0.
BEHIND_WHO_ASKS = 1

_MAX_QUERY_CHARS = 4096  # the default of `retriever.max_query_chars`; encoders read far less


# Of an answer, only what is read of it; plain dictionaries, since a turn has thousands of tokens.
class _Hit(TypedDict):
    id: str
    title: str
    text: str
    score: FiniteFloat


class _Found(TypedDict):
    index: str
    revision: str
    results: list[list[_Hit]]


class _Page(TypedDict):
    id: str
    title: str
    text: str


class _Logprob(TypedDict):
    logprob: FiniteFloat


class _Logprobs(TypedDict):
    content: list[_Logprob]


class _Span(TypedDict):
    start: int
    end: int
    version: Annotated[str, Field(max_length=100)]


class _Turn(TypedDict):
    token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]]
    logprobs: _Logprobs
    weight_versions: list[_Span] | None
    finish_reason: str | None
    stop_reason: str | int | None


class _Turns(TypedDict):
    choices: Annotated[list[_Turn], Field(min_length=1)]


_FOUND, _TURNS, _DIGESTS = TypeAdapter(_Found), TypeAdapter(_Turns), TypeAdapter(dict[str, str])
_PAGE = TypeAdapter(_Page)
_INFO, _STATUS, _UPDATED = TypeAdapter(RetrieverInfo), TypeAdapter(WeightsStatus), TypeAdapter(WeightsResponse)


# Errors that are an answer to who asked, by the names of services/retriever/web: a page that is not given, and a query
# that is none to a search engine. As models may write it, it finds nothing.
_NO_PAGE = "address_refused answer_too_large host_paused invalid_request page_failed page_not_found page_refused"
_NOTHING = {
    "/open": frozenset([*_NO_PAGE.split(), "page_too_slow", "page_unreadable"]),
    "/search": frozenset(["query_rejected"]),
}
# A host may take its time, and pages of one host come one after the other.
_PAGE_SECONDS = 90.0
_SEARCH, _OPEN, _NOT_GIVEN = "/search", "/open", object()
# What the retriever itself says of such a page.
_TOO_SLOW = Answer(504, httpx.Headers(), b'{"error": "page_too_slow"}')


class RetrieverClient(HttpService):
    """Client for the retriever's native dialect.

    `revision`, if set, is the index revision that must answer.
    """

    kind = "retriever"
    # A budget that is spent, a query that is not recorded, a disk that is full: 503 would be waited for in vain.
    _final_statuses = frozenset({402, 409, 507})
    revision: str | None = None

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        at_once: int | None = None,
        busy_timeout: float | None = None,
    ) -> None:
        super().__init__(
            url, name="the retriever", timeout=timeout, retries=retries, at_once=at_once, busy_timeout=busy_timeout
        )

    async def search(self, query: str, top_k: int) -> list[Passage]:
        return [found.passage for found in await self.search_scored(query, top_k)]

    async def search_scored(self, query: str, top_k: int) -> list[ScoredPassage]:
        """Search; a query without end, as models may write it, is cut, and one that an engine rejects finds nothing.

        Raises:
            ServiceError: as `request` does.
            ConditionsChangedError: an index revision other than `revision` answered.
        """
        asked = {"query": query[:_MAX_QUERY_CHARS], "top_k": top_k}
        answer = await self.request("POST", _SEARCH, json=asked)
        if answer is _NOT_GIVEN:
            return []
        body = self.as_form(_FOUND, answer)
        if self.revision is not None and body["revision"] != self.revision:
            raise ConditionsChangedError(
                f"revision {body['revision']} of the index {body['index']} answered instead of {self.revision}: "
                "the retriever loaded a new one in the meantime"
            )
        if len(body["results"]) != 1 or len(hits := body["results"][0]) > top_k:
            raise self.nonsense("other numbers of results or of passages than were asked for")
        return [ScoredPassage(Passage(hit["id"], hit["title"], hit["text"]), hit["score"]) for hit in hits]

    async def open(self, page: str) -> list[Passage]:
        """The passage with that id, or the page with that url, whole. Raises ServiceError, as `request` does.

        Empty if there is none, or if it cannot or must not be read: that is for who asked to know, and no fault.
        """
        answer = await self.request("POST", _OPEN, json={"id": page[:_MAX_QUERY_CHARS]}, limit=_PAGE_SECONDS)
        if answer is _NOT_GIVEN:
            return []
        found = self.as_form(_PAGE, answer)
        return [Passage(found["id"], found["title"], found["text"])]

    def _decoded(self, path: str, name: str, answer: Answer) -> Any:
        """As of any service, or `_NOT_GIVEN`. By its status alone, a proxy's word would be taken for it."""
        if answer.status >= 400 and _error_named(answer.content) in _NOTHING.get(path, ()):
            return _NOT_GIVEN
        return super()._decoded(path, name, answer)

    async def _exchange(
        self, method: str, path: str, body: bytes | None, limit: float, name: str | None = None
    ) -> Answer:
        """As of any service; a page that takes too long is not given, if the retriever is ready for others."""
        try:
            return await super()._exchange(method, path, body, limit, name)
        except ServiceError as error:
            if path != _OPEN or error.reason != "timeout":
                raise
            await self.check_ready()
            logger.warning("a page is not waited for any longer: %s", error)
            return _TOO_SLOW

    async def served(self) -> tuple[RetrieverInfo, IndexInfo]:
        """What is served, and the index that answers; raises ServiceError, as `request` does."""
        info = await self.request_as(_INFO, "GET", "/info")
        for index in info.indexes:
            if index.name == info.index:
                return info, index
        raise self.nonsense("index: it is not among indexes")


def _error_named(body: bytes) -> str | None:
    """The name of the error that a service of ours answers with."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    name = told.get("error") if isinstance(told, dict) else None
    return name if isinstance(name, str) else None


@dataclass(slots=True)
class _UnderWay:
    """A turn that is asked for: when the server got it, unless it is to be asked again; whether it was told to end."""

    began: float | None = None
    cut: bool = False

    def tried(self, again: bool) -> None:
        self.began = time.monotonic() if again else None


class PolicyClient(HttpService):
    """Samples tokens from one policy server through vLLM's token-in/token-out route, after all others who ask it.

    `weight_version` salts the prefix cache, so that keys and values of other weights are never reused. `timeout` is
    the time without a sign of life, in seconds, after which the server counts as gone; a turn may take longer.
    """

    kind = "policy"
    weight_version = INITIAL_VERSION

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 120.0,
        retries: int = 4,
        api_key: str | None = None,
        at_once: int | None = None,
        busy_timeout: float | None = None,
    ) -> None:
        super().__init__(
            url,
            name="the policy",
            timeout=timeout,
            retries=retries,
            token=api_key,
            at_once=at_once,
            busy_timeout=busy_timeout,
        )
        self._patience, self._pace = timeout, Pace(timeout)
        self._under_way: dict[str, _UnderWay] = {}  # by name

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        """Sample one turn.

        The server ends a turn that does not end in its time (`research.pace`) and returns what it has: `Finish.TIME`.
        It is not asked again, which would only take as long again.

        Raises ServiceError, as `request` does, and also if the server shows no sign of life while it should sample.
        """
        async with self._slots:
            return await self._generate(prompt_ids, max_tokens, sampling)

    async def _generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        # The server calls a generation by its header, if there is one: several of an episode need names of their own.
        own, started = uuid.uuid4().hex, time.monotonic()
        name = f"{episode}.{own[:12]}" if (episode := request_id.current()) else own
        body = {
            "request_id": name,
            "token_ids": list(prompt_ids),
            "sampling_params": sampling_params(max_tokens, sampling),
            "cache_salt": self.weight_version,
            "priority": BEHIND_WHO_ASKS,
        }
        turn = self._under_way[name] = _UnderWay()
        # No time-out: it is over when it has its tokens, or when its deadline has passed.
        asked = asyncio.create_task(
            self._send("POST", "/inference/v1/generate", body, math.inf, name=name, on_try=turn.tried)
        )
        try:
            in_time = await self._until_over(asked, name, max_tokens)
            seconds = time.monotonic() - (turn.began or started)
            generation = self._generation(asked.result(), max_tokens, cut=turn.cut)
        finally:
            del self._under_way[name]
            asked.cancel()
        if not in_time and not generation.token_ids:
            raise ServiceError(f"{self._name} at {self.url} sampled no token in the whole time that a generation has")
        self._pace.learn(len(generation.token_ids), seconds)
        return generation

    async def cut(self) -> None:
        """Make the server end every turn under way and return what it has; raises ServiceError if it is gone."""
        if self._under_way:
            await self._end(list(self._under_way))

    async def _until_over(self, asked: asyncio.Task[Any], name: str, max_tokens: int) -> bool:
        """Wait until a turn has ended; False if it was told to end because its time is over."""
        turn = self._under_way[name]
        while (left := self._seconds_left(turn, max_tokens)) > 0:
            await asyncio.wait({asked}, timeout=min(left, self._patience))
            if asked.done():
                return True
            await self.check_ready(self._patience)  # a turn may take long; a server that is gone may not
        await self._end([name])
        await asyncio.wait({asked}, timeout=self._patience)
        if not asked.done():
            raise ServiceError(f"{self._name} at {self.url} does not end a generation that takes too long")
        return False

    def _seconds_left(self, turn: _UnderWay, max_tokens: int) -> float:
        """All of a turn's time as long as no server has taken it."""
        passed = time.monotonic() - turn.began if turn.began is not None else 0.0
        return self._pace.seconds_for(max_tokens) - passed

    async def _end(self, names: list[str]) -> None:
        for name in names:
            self._under_way[name].cut = True
        ids = [f"generate-tokens-{name}" for name in names]  # the server calls them so
        body = orjson.dumps({"request_ids": ids})
        answer = await self._exchange("POST", "/inference/v1/abort_requests", body, self._patience)
        if answer.status != 200:
            raise ServiceError(f"{self._name} at {self.url} does not end a generation (it answered {answer.status})")

    def _generation(self, answer: Any, max_tokens: int, *, cut: bool) -> Generation:
        """What the server answered; `cut`: it was told to end the turn. Raises ServiceError if it is no turn."""
        turn = self.as_form(_TURNS, answer)["choices"][0]
        tokens, spans = turn["token_ids"], turn["weight_versions"] or []
        ends = [0, *(span["end"] for span in spans)]
        if len(tokens) > max_tokens or len(turn["logprobs"]["content"]) != len(tokens):
            raise self.nonsense("more tokens than were asked for, or another number of log-probabilities")
        if ends[-1] != len(tokens) or any(not a == s["start"] <= s["end"] for a, s in zip(ends, spans, strict=False)):
            raise self.nonsense("weight_versions: they do not belong to the tokens")
        was_cut = cut and turn["finish_reason"] == "abort"
        return Generation(
            token_ids=tokens,
            logprobs=[entry["logprob"] for entry in turn["logprobs"]["content"]],
            versions=[span["version"] for span in spans for _ in range(span["start"], span["end"])],
            finish=Finish.TIME if was_cut else finish_of(turn["finish_reason"], turn["stop_reason"]),
        )


class PolicyAdmin(HttpService):
    """Hands new weights to one policy server; needs its admin token."""

    kind = "weights"
    # An update that fails or hangs would only do so again, and freeze the server each time.
    _retries_timeouts = False
    _retried_statuses = frozenset({502, 503})

    def __init__(self, url: str, *, token: str, timeout: float = 300.0, retries: int = 2) -> None:
        super().__init__(url, name="the policy's weight route", timeout=timeout, retries=retries, token=token)

    async def update_weights(self, request: WeightsRequest) -> WeightsResponse:
        return await self.request_as(_UPDATED, "POST", "/admin/weights", json=request.model_dump())

    async def offer(self, offer: BroadcastOffer) -> WeightsStatus:
        """What is served, by a server that would take such weights; raises ServiceError if it would not."""
        return await self.request_as(
            _STATUS, "POST", "/admin/weights/offer", json=offer.model_dump(), limit=READY_TIMEOUT_SECONDS
        )

    async def receive(self, request: BroadcastRequest) -> WeightsResponse:
        """Make the server's workers join a group and serve what they receive there."""
        return await self.request_as(_UPDATED, "POST", "/admin/weights/broadcast", json=request.model_dump())

    async def weights(self, limit: float = READY_TIMEOUT_SECONDS) -> WeightsStatus:
        """What is served; the answer may take `limit` seconds."""
        return await self.request_as(_STATUS, "GET", "/admin/weights", limit=limit)

    async def digests(self) -> dict[str, str]:
        """SHA-256 of each weight tensor, as the server computes with it."""
        return await self.request_as(_DIGESTS, "GET", "/admin/weights/digests")


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
        return Finish.SEARCH if isinstance(stop_reason, str) else Finish.EOS  # a stop text; a number is a token
    raise ServiceError(f"the policy ended a generation with {finish_reason!r}; it may be shutting down")
