"""Evaluation on held-out questions during a run: greedy for the curves, sampled to see what exploration can find."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from research.episode.agent import GREEDY, SearchAgent
from research.errors import TrainingError
from research.questions import Question
from research.questions.model import question_from_dict
from research.questions.sampling import first_of_each_kind
from research.scoring.evaluate import KindFigures, evaluate, pass_at_k
from research.settings import Settings
from services.trainer.rollout.rollouts import Rollouts, WrongWeightsError, require_version
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
        """Whether the record has answers to exactly these questions."""
        asked = [answer["question"]["id"] for answer in self._run_dir.answers(name)]
        return sorted(asked) == sorted(question.id for question in self.questions(name))

    async def evaluate(self, name: str) -> dict[str, KindFigures]:
        """Ask the questions and record the answers.

        Raises:
            TrainingError: after all retries, some questions could not be asked, or other weights than the published
                ones answered.
        """
        sampling = replace(self._rollouts.sampling, seed=self._rollouts.seed) if name == SAMPLED else GREEDY
        for _ in range(1 + self._settings.grpo.service_retries):
            await self._rollouts.gate.wait_until_ready()
            self._status.done = 0
            answered, figures = await evaluate(
                self._agent,
                self.questions(name),
                sampling=sampling,
                concurrency=self._settings.policy.max_num_seqs * len(self._settings.endpoints.policy_urls),
                on_answer=self._status.advance,
            )
            fault: Exception | None = None
            if failed := sum(f.failed for f in figures.values()):
                fault = TrainingError(f"evaluation {name!r}: {failed} questions could not be asked")
            try:
                # A policy server that restarted midway serves what it finds, until it receives these weights.
                require_version([a.episode for a in answered], self._rollouts.version())
            except WrongWeightsError as error:
                fault = error
            if fault is None:
                break
            self._log(f"{fault}; every question is asked again")
        else:
            raise TrainingError(f"{fault}; see the services' logs")
        await asyncio.to_thread(self._run_dir.write_evaluation, name, answered, figures)
        return figures

    def summary_line(self, name: str, figures: dict[str, KindFigures]) -> str:
        """The outcome in one line."""
        if name == SAMPLED:
            k = self._settings.grpo.group_size
            answers = [(question_from_dict(a["question"]), a["score"]["em"]) for a in self._run_dir.answers(name)]
            rates = pass_at_k((question.id, question.stratum, em) for question, em in answers)
            return f"pass@{k} before GRPO: " + ", ".join(f"{kind} {rate:.3f}" for kind, rate in rates.items())
        each = "; ".join(f"{kind} EM {f.em:.3f} F1 {f.f1:.3f} (n {f.n})" for kind, f in figures.items())
        return f"evaluation {name!r} on held-out questions: {each}"
