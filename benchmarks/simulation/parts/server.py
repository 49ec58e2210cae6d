"""A policy server: requests that run together share its iterations, prefill goes first, a prefix cache saves some.

Every running sequence gets a token per iteration. So one clock, of tokens per sequence, serves all of them: a request
ends when the clock has gone on by the number of its tokens, and an event is needed only where one begins or ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from simpy import Environment, Event

from benchmarks.simulation.parts.cache import PrefixCache
from benchmarks.simulation.settings import ServerRates

_NEARLY = 1e-6  # tokens; what the clock may miss by rounding


@dataclass(frozen=True, slots=True)
class Request:
    """A turn to sample: `context` tokens are there already, `prompt` of them in common with all of `group`."""

    episode: Hashable
    group: Hashable
    context: int
    prompt: int
    sampled: int

    @property
    def tokens(self) -> int:
        return self.context + self.sampled


@dataclass(frozen=True, slots=True, order=True)
class _Running:
    """Ordered by the token clock's time of its end, then by arrival."""

    end: float
    number: int
    request: Request = field(compare=False)
    done: Event = field(compare=False)
    version: int = field(compare=False)


class PolicyServer:
    """Continuous batching. `on_busy` is called when the server begins (1) and ends (-1) to have requests that run."""

    def __init__(
        self, env: Environment, rates: ServerRates, on_busy: Callable[[int], None] = lambda change: None
    ) -> None:
        self._env, self._rates, self._on_busy = env, rates, on_busy
        self._cache = PrefixCache()
        self._waiting: deque[tuple[Request, Event]] = deque()
        self._running: list[_Running] = []
        self._clock, self._since, self._plan = 0.0, 0.0, 0
        self._to_prefill = 0.0  # seconds of work
        self._speed = 1.0
        self._reserved = self._count = self._version = 0
        # Tokens: sampled; of prompts, in all and computed; of running requests, computed anew for new weights.
        self.sampled = self.prompted = self.prefilled = self.recomputed = 0
        self.busy_seconds = 0.0

    def generate(self, request: Request) -> Event:
        """An event that comes when the turn is sampled; its value is the version that sampled the first token."""
        self._advance()
        done = self._env.event()
        self._waiting.append((request, done))
        self._admit()
        self._schedule()
        return done

    def set_speed(self, speed: float) -> None:
        """Go on at `speed` times what the rates say; 0 pauses."""
        self._advance()
        self._speed = speed
        self._schedule()

    def new_weights(self, version: int, keep_kv: bool) -> None:
        """Take `version`; compute anew what former weights have: caches, keys and values of running requests."""
        self._advance()
        self._version = version
        if not keep_kv:
            self._cache.clear()
            # What still runs has its tokens but for those that the clock has not come to.
            anew = sum(each.request.tokens - (each.end - self._clock) for each in self._running)
            self.recomputed += round(anew)
            self._to_prefill += anew * self._rates.prefill
        self._schedule()

    def _admit(self) -> None:
        rates = self._rates
        while self._waiting and len(self._running) < rates.sequences:
            request, done = self._waiting[0]
            if self._running and self._reserved + request.tokens > rates.kv_tokens:
                return
            self._waiting.popleft()
            of_prompt = self._cache.take(request.group)
            cached = max(self._cache.take(request.episode), of_prompt) // rates.block * rates.block
            self._cache.put(request.group, request.prompt)
            self._reserved += request.tokens
            self._cache.shrink(max(0, rates.kv_tokens - self._reserved))
            self.prompted += request.context
            self.prefilled += request.context - cached
            self._to_prefill += (request.context - cached) * rates.prefill
            if not self._running:
                self._on_busy(1)
            end = self._clock + request.sampled
            heappush(self._running, _Running(end, self._count, request, done, self._version))
            self._count += 1

    def _advance(self) -> None:
        """Bring the token clock to the present."""
        elapsed, self._since = self._env.now - self._since, self._env.now
        if not self._running or self._speed == 0:
            return
        self.busy_seconds += elapsed
        work = elapsed * self._speed
        prefill = min(work, self._to_prefill)
        self._to_prefill -= prefill
        self._clock += (work - prefill) / self._rates.decoding(len(self._running))

    def _schedule(self) -> None:
        """Come back when the next request ends; plans made before are void."""
        self._plan += 1
        if not self._running or self._speed == 0:
            return
        tokens = max(0.0, self._running[0].end - self._clock)
        seconds = (self._to_prefill + tokens * self._rates.decoding(len(self._running))) / self._speed
        plan = self._plan
        self._env.timeout(seconds).callbacks.append(lambda _: self._end(plan))

    def _end(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._advance()
        while self._running and self._running[0].end <= self._clock + _NEARLY:
            ended = heappop(self._running)
            request = ended.request
            self._reserved -= request.tokens
            self._cache.put(request.episode, request.tokens)
            self.sampled += request.sampled
            ended.done.succeed(ended.version)
        idle = not self._running
        if idle:
            self._on_busy(-1)
        self._admit()
        self._schedule()
