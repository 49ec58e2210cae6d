"""The supervised phase as a part of a run: its traces, made once, and steps on them for as long as one likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from research.episode.agent import SearchAgent
from research.errors import ConfigurationError
from research.questions import Question
from research.settings import Settings
from services.trainer.learner.batching import TrainingSequence, sequence_of
from services.trainer.learner.learner import Learner
from services.trainer.sft.traces import make_traces


@dataclass(frozen=True, slots=True)
class SftPhase:
    """Sequences of the traces, in a fixed order; step i trains on the i-th batch of their endless repetition."""

    sequences: list[TrainingSequence]
    batch_size: int

    def step(self, number: int, learner: Learner, optimizer: torch.optim.Optimizer) -> float:
        """One supervised step; returns the loss a token. Blocks."""
        start = number * self.batch_size
        batch = [self.sequences[i % len(self.sequences)] for i in range(start, start + self.batch_size)]
        return learner.supervised_update(batch, optimizer)


async def prepare_sft(settings: Settings, agent: SearchAgent, questions: Sequence[Question]) -> SftPhase:
    """Make the traces against the real retriever; the same settings and seed give the same ones.

    Raises ConfigurationError if no training question can be followed.
    """
    sft = settings.sft
    traces = await make_traces(agent, questions, sft.traces, sft.retry_fraction, settings.seed)
    if len(traces) < sum(sft.traces.values()):
        raise ConfigurationError(
            f"sft.traces: {len(traces)} of {sum(sft.traces.values())} traces could be made; "
            "there are too few training questions of a kind, or the retriever does not find what their hops need"
        )
    return SftPhase([sequence_of(trace) for trace in traces], sft.batch_size)
