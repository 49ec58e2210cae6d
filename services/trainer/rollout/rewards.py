"""What the episodes of training earn: the terms of `[reward]`, and their sum."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from research.bench.judge import JUDGE_KEY_VARIABLE, Grader, Verdict, Verdicts, ask_judge, key_of
from research.episode.agent import Episode
from research.errors import ContextFullError, ServiceBusyError, ServiceError, TrainingError
from research.questions import Question
from research.scoring.reward import Score, score
from research.scoring.rewards import RewardFunction, f1_reward, reward_functions
from research.settings import Settings
from research.strategies.openai_chat import OpenAIChat
from services.trainer.rollout.gate import busy_for_too_long
from services.web.auth import environment_secret

DEFAULT = {"f1": 1.0}
Check = Callable[[], Awaitable[str | None]]  # what is wrong with a service; None if nothing
_REQUESTS = 32  # to the judge at once
_OF_THE_ANSWER = (400, 413, 422)  # HTTP statuses of what a judge will not read, such as by its filter, however often

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Judge:
    """Asks a model whether answers are right; each verdict is kept, so that a resumed run rewards as before.

    Attributes:
        check: what is wrong with the judge, or None if it answers.
        wait_until_ready: returns once `check` finds nothing; True if it had to wait.
        failures: that are survived for one answer while the judge is ready.
    """

    name: str
    grader: Grader
    verdicts: Verdicts
    check: Check
    wait_until_ready: Callable[[Check], Awaitable[bool]]
    failures: int
    _has_judged: bool = field(default=False, init=False)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_REQUESTS), init=False)
    _asking: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock), init=False)

    async def reward(self, question: Question, episode: Episode) -> float:
        """1 if the judge finds the answer right, in good form, else 0. Raises TrainingError if it fails for good."""
        if episode.format_fault is not None:
            return 0.0
        record = {"question": question.text, "gold": [*question.answers], "answer": episode.answer}
        # Members of a group often give the same answer: it is judged once.
        async with self._asking[key_of(self.name, record)], self._slots:
            verdict = self.verdicts.of(record)
            if verdict is None:
                verdict = await self._ask(record)
                if verdict is None:
                    return 0.0
                await asyncio.to_thread(self.verdicts.add, record, verdict)
            self._has_judged = True  # also if it was before a kill
        return float(verdict.correct)

    async def _ask(self, record: Mapping[str, Any]) -> Verdict | None:
        """A verdict; None if a judge that gives others will not read this answer, which a resumed run asks again."""
        failed = 0
        while True:
            try:
                verdict = await ask_judge(self.grader, record)
                self._has_judged = True
                return verdict
            except (ContextFullError, ValueError) as error:
                return Verdict(correct=False, reason=f"no verdict: {error}")
            except ServiceBusyError as error:
                raise busy_for_too_long(error) from error
            except ServiceError as error:
                failed += not await self.wait_until_ready(self.check)
                if failed > self.failures and error.status in _OF_THE_ANSWER and self._has_judged:
                    logger.warning("the judge gives no verdict on an answer, which counts as wrong: %s", error)
                    return None
                if failed > self.failures:
                    raise TrainingError(f"the judge failed {failed} times on one answer: {error}") from error


@dataclass(frozen=True, slots=True)
class Rewards:
    """The weighted sum of terms; without arguments the paper's reward."""

    terms: Mapping[str, float] = field(default_factory=lambda: DEFAULT)
    functions: Mapping[str, RewardFunction] = field(default_factory=lambda: {"f1": f1_reward})
    judge: Judge | None = None

    async def score(self, question: Question, episode: Episode) -> Score:
        """What a finished episode earns, with each term apart.

        Raises TrainingError if a function of the user's own raises or returns no finite number, or the judge fails.
        """
        plain = score(episode.answer, question.answers, episode.format_fault)
        earned = {name: await self._term(name, question, episode) for name in self.terms}
        total = math.fsum(weight * earned[name] for name, weight in self.terms.items())
        if dict(self.terms) == DEFAULT:
            return replace(plain, reward=total, terms=earned)
        parts = " + ".join(f"{weight:g} x {name} {earned[name]:.2f}" for name, weight in self.terms.items())
        return replace(plain, reward=total, reason=f"{plain.reason}; {parts}", terms=earned)

    async def _term(self, name: str, question: Question, episode: Episode) -> float:
        if name == "judge":
            assert self.judge is not None
            return await self.judge.reward(question, episode)
        if ":" in name:  # it may take its time, or block
            return await asyncio.to_thread(self.functions[name], question, episode)
        return self.functions[name](question, episode)


@asynccontextmanager
async def open_rewards(
    settings: Settings, verdicts: Path, wait_until_ready: Callable[[Check], Awaitable[bool]]
) -> AsyncIterator[Rewards]:
    """The rewards of a run; `verdicts` is the file that keeps those of a judge.

    Raises:
        ConfigurationError: a function of the user's own cannot be imported.
        AssetError: the file of verdicts is corrupt.
    """
    reward, limits = settings.reward, settings.episode
    functions = reward_functions(reward)
    if "judge" not in reward.terms:
        yield Rewards(reward.terms, functions)
        return
    key = environment_secret(JUDGE_KEY_VARIABLE)
    async with OpenAIChat(
        reward.judge_endpoint,
        reward.judge_model,
        timeout=limits.request_timeout,
        retries=limits.retries,
        api_key=key,
        busy_timeout=settings.trainer.outage_timeout,
    ) as chat:

        async def check() -> str | None:
            try:
                await chat.probe_capabilities()
            except ServiceError as error:
                return str(error)
            return None

        with Verdicts(verdicts, reward.judge_model) as kept:
            retries = settings.grpo.service_retries
            yield Rewards(
                reward.terms, functions, Judge(reward.judge_model, chat, kept, check, wait_until_ready, retries)
            )
