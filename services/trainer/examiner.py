"""Held-out questions during a run: greedily for the curves, sampled for what exploration can find."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from research.config import Settings
from research.episode import Sampling, SearchAgent
from research.evaluate import GREEDY, KindFigures, evaluate, pass_at_k
from research.questions import Question
from research.questions.model import question_from_dict
from research.questions.sampling import first_of_each_kind
from services.trainer.record import RunRecord
from services.trainer.rollouts import Rollouts, require_version

BEFORE, WARMUP, AFTER, SAMPLED = "before", "warmup", "after", "sampled"


def between(step: int) -> str:
    """The name of the small evaluation after a step."""
    return f"step-{step:06d}"


class Examiner:
    """Asks the policy as it is served, checks that it served the published weights, and records every answer."""

    def __init__(
        self,
        settings: Settings,
        agent: SearchAgent,
        rollouts: Rollouts,
        record: RunRecord,
        held_out: Sequence[Question],
        on_answer: Callable[[], None],
    ) -> None:
        self._settings, self._agent, self._rollouts, self._record = settings, agent, rollouts, record
        self._held_out, self._on_answer = held_out, on_answer

    def questions(self, name: str) -> list[Question]:
        """What the evaluation `name` asks; of `sampled`, each question as often as a group is large."""
        sizes, k = self._settings.evaluation, self._settings.grpo.group_size
        if name == SAMPLED:
            few = first_of_each_kind(self._held_out, sizes.sampled_per_kind)
            return [question for question in few for _ in range(k)]
        whole = name in (BEFORE, WARMUP, AFTER)
        count = sizes.per_kind if whole else sizes.per_kind_between
        return first_of_each_kind(self._held_out, count)

    def is_done(self, name: str) -> bool:
        """Whether the record has answers to just these questions."""
        asked = [answer["question"]["id"] for answer in self._record.answers(name)]
        return sorted(asked) == sorted(question.id for question in self.questions(name))

    async def examine(self, name: str) -> dict[str, KindFigures]:
        """Ask and record. Raises WrongWeightsError if other weights than the published ones answered."""
        await self._rollouts.outage.wait_until_over()
        sampling: Sampling = self._rollouts.sampling if name == SAMPLED else GREEDY
        answered, figures = await evaluate(
            self._agent,
            self.questions(name),
            sampling=sampling,
            concurrency=self._settings.policy.max_sequences,
            on_answer=self._on_answer,
        )
        require_version([a.episode for a in answered], self._rollouts.version())
        self._record.write_evaluation(name, answered, figures)
        return figures

    def told(self, name: str, figures: dict[str, KindFigures]) -> str:
        """The outcome in one line."""
        if name == SAMPLED:
            k = self._settings.grpo.group_size
            answers = [(question_from_dict(a["question"]), a["score"]["em"]) for a in self._record.answers(name)]
            rates = pass_at_k((question.id, question.stratum, em) for question, em in answers)
            return f"pass@{k} before GRPO: " + ", ".join(f"{kind} {rate:.3f}" for kind, rate in rates.items())
        each = "; ".join(f"{kind} EM {f.em:.3f} F1 {f.f1:.3f} (n {f.n})" for kind, f in figures.items())
        return f"evaluation {name!r} on held-out questions: {each}"
