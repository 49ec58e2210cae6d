"""Supervised fine-tuning on the format: the phase before GRPO, and the ablation that continues it instead of GRPO."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from research.episode.agent import SearchAgent
from research.errors import ConfigurationError
from research.questions import Question
from research.settings import Settings
from services.trainer.entry import SupervisedEntry
from services.trainer.learner.team import Team
from services.trainer.model.batching import TrainingSequence, sequence_of
from services.trainer.run import Run
from services.trainer.sft.traces import make_traces
from services.trainer.status import RunPhase
from services.trainer.telemetry.metrics import supervised_metrics


@dataclass(frozen=True, slots=True)
class TraceBatches:
    """Sequences of the traces, in a fixed order; step i trains on the i-th batch of their endless repetition."""

    sequences: list[TrainingSequence]
    batch_size: int

    def train(self, number: int, learner: Team, learning_rate: float, phase: Literal["sft", "ablation"]) -> float:
        """One supervised step; returns the loss per token. Blocks."""
        start = number * self.batch_size
        batch = [self.sequences[i % len(self.sequences)] for i in range(start, start + self.batch_size)]
        return learner.supervised_update(batch, learning_rate, phase)


class SftPhase:
    """The supervised phase of a run. It makes its traces once, when they are first needed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._traces: TraceBatches | None = None

    async def train(self) -> None:
        """Take `sft.steps` steps; then the weights are also the reference model of the KL term."""
        run, sft = self._run, self._run.settings.sft
        with run.clock.phase(RunPhase.SFT, sft.steps):
            traces = await self.traces()
            run.status.log(f"the supervised phase takes {sft.steps} steps on {len(traces.sequences)} traces")
            for number in range(sft.steps):
                loss = await run.in_learner_thread(partial(traces.train, number, run.learner, sft.learning_rate, "sft"))
                run.status.advance()
                if number == 0 or (number + 1) % 5 == 0:
                    run.status.log(f"sft step {number + 1}/{sft.steps}: loss {loss:.3f} per token")
            await run.in_learner_thread(run.learner.end_sft)

    async def traces(self) -> TraceBatches:
        if self._traces is None:
            run = self._run
            self._traces = await run.through_outages(lambda: prepare_sft(run.settings, run.agent, run.train))
        return self._traces


class SupervisedStep:
    """A step of the ablation `supervised`: the same traces, for its share of `ablation.seconds`."""

    def __init__(self, run: Run, sft: SftPhase) -> None:
        self._run = run
        self._sft = sft

    async def take(self, step: int) -> SupervisedEntry:
        run, sft = self._run, self._run.settings.sft
        traces = await self._sft.traces()
        seconds = run.settings.ablation.seconds / max(run.settings.grpo.steps, 1)
        losses: list[float] = []
        with run.clock.phase(RunPhase.UPDATE):
            started = time.perf_counter()
            while not losses or time.perf_counter() - started < seconds:
                number = sft.steps + run.learner.updates
                step_of = partial(traces.train, number, run.learner, sft.learning_rate, "ablation")
                losses.append(await run.in_learner_thread(step_of))
                await run.in_learner_thread(partial(run.learner.set_updates, run.learner.updates + 1))
        await run.publish(run.publisher.version + 1)
        return supervised_metrics(step, run.publisher.version, losses, sft.learning_rate)

    async def close(self) -> None:
        """Nothing is under way between its steps."""


async def prepare_sft(settings: Settings, agent: SearchAgent, questions: Sequence[Question]) -> TraceBatches:
    """Make the traces with the real retriever; the same settings and seed give the same traces.

    Raises ConfigurationError if too few traces could be made.
    """
    sft = settings.sft
    traces = await make_traces(agent, questions, sft.traces, sft.retry_fraction, settings.seed)
    if len(traces) < sum(sft.traces.values()):
        raise ConfigurationError(
            f"sft.traces: only {len(traces)} of {sum(sft.traces.values())} traces could be made; lower the counts, "
            "add training questions of each kind, or use an index in which the retriever finds what their hops need"
        )
    return TraceBatches([sequence_of(trace) for trace in traces], sft.batch_size)
