"""Before a run begins: do sampler and learner compute the same log-probabilities of the same tokens?

They are two programs with one model. Where they differ by more than rounding (a prompt template, a cap on the logits, a
temperature, other weights), every importance ratio is wrong, and nothing else would tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from research.episode.agent import Sampling, SearchAgent
from research.errors import ServiceError, TrainingError
from research.questions import Question
from services.trainer.model.batching import TrainingSequence

QUESTIONS, TOKENS = 8, 16
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """One sampled token and its log-probability by sampler and learner, in nats."""

    token: str
    sampler: float
    learner: float

    @property
    def nats(self) -> float:
        return abs(self.sampler - self.learner)

    def __str__(self) -> str:
        return f"{self.token!r}: {self.sampler:.3f} sampled, {self.learner:.3f} learned"


async def probe(
    agent: SearchAgent, questions: Sequence[Question], sampling: Sampling, version: str
) -> list[TrainingSequence]:
    """The first tokens of a few episodes, from the served weights, with the log-probabilities that the server reports.

    Raises ServiceError if the policy is unavailable, or serves other weights than `version`, as after a restart.
    """

    async def first_tokens(number: int, question: Question) -> TrainingSequence:
        prompt = agent.tokenizer.prompt_ids(agent.prompt, question.text)
        own = Sampling(sampling.temperature, sampling.top_p, seed=number)
        generation = await agent.policy.generate(prompt, TOKENS, own)
        if others := {*generation.versions} - {version}:
            raise ServiceError(f"the policy serves weight version {', '.join(sorted(others))} instead of {version}")
        positions = range(len(prompt), len(prompt) + len(generation.token_ids))
        return TrainingSequence(
            prompt + generation.token_ids, list(positions), generation.logprobs, prompt_length=len(prompt)
        )

    chosen = enumerate(questions[:QUESTIONS])
    return list(await asyncio.gather(*(first_tokens(number, question) for number, question in chosen)))


def compare(
    agent: SearchAgent, sequences: Sequence[TrainingSequence], learned: Sequence[Sequence[float]], ceiling: float
) -> float:
    """Mean absolute difference per token, in nats.

    Raises TrainingError if it is above `ceiling` (or not a number), with the tokens that differ most.
    """
    differences = [
        Difference(agent.tokenizer.decode([sequence.token_ids[position]]), sampler, learner)
        for sequence, own in zip(sequences, learned, strict=True)
        for position, sampler, learner in zip(sequence.sampled_positions, sequence.sampler_logprobs, own, strict=True)
    ]
    mean = fmean(difference.nats for difference in differences)
    if mean <= ceiling:
        return mean
    worst = sorted(differences, key=lambda difference: -difference.nats)[:_SHOWN]
    raise TrainingError(
        f"sampler and learner are {mean:.3f} nats per token apart on the same {len(differences)} tokens "
        f"(alarms.start_mismatch_ceiling = {ceiling:g}), most at {'; '.join(map(str, worst))}. They should be one "
        "policy: check whether both use the same model, model.dtype and episode.temperature, and whether this vLLM "
        "computes this model as transformers does"
    )
