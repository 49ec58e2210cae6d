"""Evaluation on held-out questions during a run: greedy for the curves, sampled to see what exploration can find."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from research.episode.agent import GREEDY, SearchAgent
from research.errors import ProtocolError, ResearchError, ServiceBusyError, ServiceError, TrainingError
from research.questions import Question
from research.questions.model import question_from_dict
from research.questions.sampling import first_of_each_kind
from research.scoring.evaluate import Answered, KindFigures, ask_questions, figures_of, pass_at_k
from research.settings import Settings
from services.trainer.rollout.gate import busy_for_too_long
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.versions import WrongWeightsError, require_version
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.status import RunStatus

BEFORE, SFT, AFTER, SAMPLED = "before", "sft", "after", "sampled"


def interim_name(step: int) -> str:
    """The name of the interim evaluation after a step."""
    return f"step-{step:06d}"


class Evaluator:
    """Asks the policy as it is served, checks that it served the published weights, and records every answer."""

    def __init__(
        self,
        settings: Settings,
        agent: SearchAgent,
        rollouts: Rollouts,
        run_dir: RunDirectory,
        held_out: Sequence[Question],
        status: RunStatus,
    ) -> None:
        """Raises ConfigurationError if an evaluation names a kind that no held-out question has."""
        self._settings, self._agent, self._rollouts, self._run_dir = settings, agent, rollouts, run_dir
        self._held_out, self._status, self._log = held_out, status, status.log
        for name in (BEFORE, interim_name(0), SAMPLED):
            self.questions(name)

    def questions(self, name: str) -> list[Question]:
        """What the evaluation `name` asks; `sampled` asks each question `grpo.group_size` times."""
        sizes, k = self._settings.evaluation, self._settings.grpo.group_size
        if name == SAMPLED:
            few = first_of_each_kind(self._held_out, sizes.pass_at_k_per_kind)
            return [question for question in few for _ in range(k)]
        whole = name in (BEFORE, SFT, AFTER)
        count = sizes.per_kind if whole else sizes.interim_per_kind
        return first_of_each_kind(self._held_out, count)

    def is_done(self, name: str) -> bool:
        """Whether the record has what became of exactly these questions."""
        asked = Counter(answer["question"]["id"] for answer in self._run_dir.answers(name))
        wanted = Counter(question.id for question in self.questions(name))
        failed = sum(figures["failed"] for figures in (self._run_dir.evaluation(name) or {}).values())
        return asked <= wanted and asked.total() + failed == wanted.total()

    async def evaluate(self, name: str) -> dict[str, KindFigures]:
        """Ask the questions and record the answers; those that failed, or that other weights answered, again.

        A question that cannot be encoded counts as failed.

        Raises:
            ServiceRefusalError: a service refuses for good.
            TrainingError: after all retries, some questions could not be asked of the published weights.
        """
        questions = self.questions(name)
        outcomes: dict[int, Answered | ProtocolError] = {}
        left, failures = list(range(len(questions))), 0
        while left:
            # As in rollouts, retries are free while a service is down.
            was_down = await self._rollouts.gate.wait_until_ready()
            faults = await self._ask(name, questions, left, outcomes)
            left = [index for index in left if index not in outcomes]
            if not left:
                break
            failures += not was_down
            fault = f"evaluation {name!r}: {len(left)} of {len(questions)} questions could not be asked: {faults[0]}"
            if failures > self._settings.grpo.service_retries:
                raise TrainingError(f"{fault}; see the services' logs")
            self._log(f"{fault}; they are asked again")
        each = [outcomes[index] for index in range(len(questions))]
        answered, figures = await asyncio.to_thread(figures_of, questions, each)
        if unusable := sorted({questions[i].id for i, each in outcomes.items() if isinstance(each, ProtocolError)}):
            self._log(f"evaluation {name!r}: left out, as they cannot be encoded: {', '.join(unusable)}")
        await asyncio.to_thread(self._run_dir.write_evaluation, name, answered, figures)
        return figures

    async def _ask(
        self,
        name: str,
        questions: Sequence[Question],
        left: Sequence[int],
        outcomes: dict[int, Answered | ProtocolError],
    ) -> list[ResearchError]:
        """Ask those left once, add what became of them to `outcomes`, and return why others have to be asked again."""
        self._status.done = len(outcomes)
        found = await ask_questions(
            self._agent,
            [(index, questions[index]) for index in left],
            sampling=replace(self._rollouts.sampling, seed=self._rollouts.seed) if name == SAMPLED else GREEDY,
            concurrency=self._settings.policy.max_num_seqs * len(self._settings.endpoints.policy_urls),
            on_answer=self._status.advance,
            name=f"{self._settings.run[:40]}-{name}",
        )
        faults: list[ResearchError] = []
        for index, outcome in zip(left, found, strict=True):
            if isinstance(outcome, ServiceBusyError):
                raise busy_for_too_long(outcome) from outcome
            if isinstance(outcome, ServiceError):
                faults.append(outcome)
                continue
            try:
                if isinstance(outcome, Answered):
                    # A policy server that restarted midway serves what it finds, until it receives these weights.
                    require_version([outcome.episode], str(self._rollouts.versions.published()))
            except WrongWeightsError as error:
                faults.append(error)
                continue
            outcomes[index] = outcome
        return faults

    def summary_line(self, name: str, figures: dict[str, KindFigures]) -> str:
        """The outcome in one line."""
        if name == SAMPLED:
            k = self._settings.grpo.group_size
            answers = [(question_from_dict(a["question"]), a["score"]["em"]) for a in self._run_dir.answers(name)]
            rates = pass_at_k((question.id, question.stratum, em) for question, em in answers)
            return f"pass@{k} before GRPO: " + ", ".join(f"{kind} {rate:.3f}" for kind, rate in rates.items())
        each = "; ".join(f"{kind} EM {f.em:.3f} F1 {f.f1:.3f} (n {f.n})" for kind, f in figures.items())
        return f"evaluation {name!r} on held-out questions: {each}"
