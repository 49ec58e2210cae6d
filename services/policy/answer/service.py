"""Runs episodes for clients: a bounded number at once, each within its limits and its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from prometheus_client import Counter, Histogram

from research.episode.agent import GREEDY, Sampling, SearchAgent
from research.episode.streaming import EpisodeDone, SearchDone, StreamingPolicy, TextDelta, stream_episode
from research.errors import ConfigurationError, ResearchError, ServiceError
from research.schemas import AgentLimits, AnswerResponse
from research.strategies import RESEARCH, BaselineStrategy, ReSearchStrategy, Strategy
from research.strategies.chat import ScoringRetriever
from research.strategies.outcome import Outcome, answer_response, outcome_of
from research.strategies.token_chat import ChatTokenizer, TokenChat
from services.policy.answer.turns import Turns

ANSWERS = Counter("research_policy_answers_total", "Answered questions by stop reason.", ["stop_reason"])
ANSWER_SECONDS = Histogram(
    "research_policy_answer_seconds", "Seconds of one answer.", buckets=(0.5, 1, 2, 5, 10, 30, 60, 120)
)
REFUSED = Counter("research_policy_answers_refused_total", "Questions refused because too many were in flight.")


# How long a refused client should wait: about as long as a small model takes to answer.
RETRY_SECONDS = 2


AnswerEvent = TextDelta | SearchDone | AnswerResponse


class BusyError(ResearchError):
    """Too many questions are in flight."""


@dataclass(frozen=True, slots=True)
class AnswerTask:
    """A question and how to answer it: sampling, limits of the request, strategy, LoRA adapter."""

    question: str
    sampling: Sampling = GREEDY
    limits: AgentLimits = field(default_factory=AgentLimits)
    strategy: str = RESEARCH
    adapter: str | None = None


class AnswerService:
    """Runs the agent.

    Args:
        agent: with the preset's limits.
        policy_with: returns the policy that samples with the named adapter, or with none; it can stream its text.
            Raises ConfigurationError if there is no such adapter.
        tokenizer, retriever: for the other strategies.
        concurrency: questions in flight at once; more are refused.
        timeout: seconds per question.
        list_timeout: seconds for several questions together, in which they also wait for places.
        max_question_chars: the most characters of a question.
    """

    def __init__(
        self,
        agent: SearchAgent,
        policy_with: Callable[[str | None], StreamingPolicy],
        tokenizer: ChatTokenizer,
        retriever: ScoringRetriever,
        *,
        concurrency: int,
        timeout: float,
        list_timeout: float,
        max_question_chars: int,
    ) -> None:
        self.agent = agent
        self._policy_with = policy_with
        self._tokenizer = tokenizer
        self._retriever = retriever
        self._slots = asyncio.Semaphore(concurrency)
        # All lists together leave half of the slots to single questions, which are answered at once or refused.
        self._lists = Turns(max(1, concurrency // 2))
        self._timeout, self._list_timeout = timeout, list_timeout
        self._max_question_chars = max_question_chars

    def validate(self, asked: AnswerTask) -> None:
        """Raise ConfigurationError that names the field if a request exceeds a limit."""
        if (length := len(asked.question)) > self._max_question_chars:
            raise ConfigurationError(
                f"question: {length} characters are more than policy.max_question_chars ({self._max_question_chars})"
            )
        self._policy_with(asked.adapter)
        if asked.strategy != RESEARCH and asked.limits.max_searches is not None:
            raise ConfigurationError(f"max_searches: the strategy {asked.strategy} has its own limit; omit it")
        if asked.limits.timeout is not None and asked.limits.timeout > self._timeout:
            raise ConfigurationError(
                f"timeout: {asked.limits.timeout:g} s are more than policy.answer_timeout ({self._timeout:g} s)"
            )

    def check_capacity(self) -> None:
        """Raise BusyError if no further question can be accepted now."""
        if self._slots.locked():
            REFUSED.inc()
            raise BusyError("too many questions at once; try again soon")

    async def answer(self, asked: AnswerTask) -> AnswerResponse:
        """Answer one question, at once or not at all.

        Raises:
            ConfigurationError: the request exceeds a limit.
            BusyError: too many questions are in flight.
            ServiceError: policy or retriever failed, or the time limit was reached.
            ProtocolError: the question leaves no room for an answer.
        """
        self.validate(asked)
        self.check_capacity()
        return await self._run_with_slot(asked)

    async def answer_all(self, asked: Sequence[AnswerTask]) -> list[AnswerResponse]:
        """Answer several questions, each as soon as there is room.

        Raises what `answer` raises, and ServiceError if the time for all of them is over.
        """
        for one in asked:
            self.validate(one)
        self.check_capacity()
        request, done = object(), 0

        async def in_turn(one: AnswerTask) -> AnswerResponse:
            nonlocal done
            async with self._lists.place(request):
                answered = await self._run_with_slot(one)
            done += 1
            return answered

        try:
            async with asyncio.timeout(self._list_timeout), asyncio.TaskGroup() as group:
                tasks = [group.create_task(in_turn(one)) for one in asked]
        except TimeoutError as error:
            raise ServiceError(
                f"only {done} of {len(asked)} questions were answered within {self._list_timeout:g} s "
                "(policy.answer_list_timeout); ask fewer at once"
            ) from error
        return [task.result() for task in tasks]

    async def stream(self, asked: AnswerTask) -> AsyncGenerator[AnswerEvent]:
        """Answer one question as events, the last of them the answer. Raises what `answer` raises."""
        self.validate(asked)
        self.check_capacity()
        if asked.strategy != RESEARCH:
            yield await self._run_with_slot(asked)
            return
        await self._slots.acquire()  # at once, since there is room
        policy = self._policy_with(asked.adapter)
        events = stream_episode(
            self._agent_for(asked, policy),
            policy,
            asked.question,
            asked.sampling,
            limit=self._seconds_for(asked),
            over=self._slots.release,
        )
        async with aclosing(events):
            try:
                async for event in events:
                    yield (
                        _answered(asked, outcome_of(event.episode), event.seconds)
                        if isinstance(event, EpisodeDone)
                        else event
                    )
            except TimeoutError as error:
                raise self._out_of_time(asked) from error

    async def _run_with_slot(self, asked: AnswerTask) -> AnswerResponse:
        async with self._slots:
            started = time.perf_counter()
            try:
                async with asyncio.timeout(self._seconds_for(asked)):
                    outcome = await self._strategy_for(asked).answer(asked.question, asked.sampling)
            except TimeoutError as error:
                raise self._out_of_time(asked) from error
            return _answered(asked, outcome, time.perf_counter() - started)

    def _out_of_time(self, asked: AnswerTask) -> ServiceError:
        return ServiceError(f"no answer within {self._seconds_for(asked):g} s")

    def _seconds_for(self, asked: AnswerTask) -> float:
        return asked.limits.timeout or self._timeout

    def _strategy_for(self, asked: AnswerTask) -> Strategy:
        policy = self._policy_with(asked.adapter)
        agent = self._agent_for(asked, policy)
        if asked.strategy == RESEARCH:
            return ReSearchStrategy(agent)
        chat = TokenChat(policy, self._tokenizer, agent.context_length)
        return BaselineStrategy.named(asked.strategy, chat, self._retriever, agent.limits)

    def _agent_for(self, asked: AnswerTask, policy: StreamingPolicy) -> SearchAgent:
        given = asked.limits.model_dump(include={"top_k", "max_searches", "max_tokens"}, exclude_none=True)
        return replace(self.agent, policy=policy, limits=self.agent.limits.model_copy(update=given))


def _answered(asked: AnswerTask, outcome: Outcome, seconds: float) -> AnswerResponse:
    ANSWERS.labels(outcome.stop_reason).inc()
    ANSWER_SECONDS.observe(seconds)
    return answer_response(outcome, seconds, asked.strategy, asked.adapter)


async def prefetch_first(events: AsyncGenerator[AnswerEvent]) -> AsyncGenerator[AnswerEvent]:
    """Wait for the first event, so that an earlier failure is an ordinary error and not the end of a stream.

    Raises what the first event raises.
    """
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def all_of_them() -> AsyncGenerator[AnswerEvent]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_of_them()
