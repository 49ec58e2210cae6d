"""One run under way: its parts, and the operations that the loop and its steps perform on them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from research.episode.agent import SearchAgent
from research.errors import ServiceError
from research.questions import Question
from research.questions.sampler import QuestionSampler
from research.scoring.evaluate import figures_as_dict
from research.settings import Settings
from research.weights.run_weights import delete_quality_after, note_quality
from services.trainer.clock import PhaseClock
from services.trainer.evaluation.evaluator import SAMPLED, Evaluator
from services.trainer.groups import Group, TrainingUse
from services.trainer.learner.team import Team
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.self_check import compare, probe
from services.trainer.rollout.stream import place_of
from services.trainer.run_dir.checkpoints import CheckpointStore, RunState
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.status import RunPhase, RunStatus
from services.trainer.telemetry.trackers import Trackers
from services.trainer.weights.disk_copy import DiskCopy
from services.trainer.weights.publisher import Publisher

Result = TypeVar("Result")

# HTTP statuses of faults that may pass (None: no answer at all, or nonsense); the run tries again.
_MAY_PASS = (None, 500, 502, 503, 504)
# After the first failure of a service that says it is ready; twice as long after each further one.
_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class Run:
    """Owns the learner's thread, the trackers and what writes the record; `close` ends them."""

    def __init__(
        self,
        settings: Settings,
        *,
        learner: Team,
        agent: SearchAgent,
        rollouts: Rollouts,
        publisher: Publisher,
        run_dir: RunDirectory,
        status: RunStatus,
        train: Sequence[Question],
        held_out: Sequence[Question],
    ) -> None:
        self.settings = settings
        self.learner, self.agent, self.rollouts = learner, agent, rollouts
        self.publisher, self.run_dir, self.status = publisher, run_dir, status
        self.train = train
        self.clock = PhaseClock(status)
        self.sampler = QuestionSampler(
            train,
            settings.questions.mix,
            settings.seed,
            candidates=settings.questions.curriculum_candidates,
            settled_share=settings.questions.settled_share,
        )
        self.drawn: dict[str, Question] = {}  # groups begun for later steps, by id, oldest first
        self.rollbacks = 0
        self._evaluator = Evaluator(settings, agent, rollouts, run_dir, held_out, status)
        self._checkpoints = CheckpointStore(run_dir.checkpoints_dir, settings.checkpoints.keep)
        # The learner gets a thread of its own: torch's thread settings apply per thread, and the loop stays responsive.
        self._learner_thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._record = DiskCopy()
        self.trackers: Trackers | None = None
        self.ended: Future[None] | None = None  # once closed: done when the other processes know that the run has ended

    async def close(self) -> None:
        """End the update under way before its next micro-batch, and close the trackers and the record."""
        self.learner.break_off()
        self.ended = self._learner_thread.submit(self.learner.close)
        self._learner_thread.shutdown(wait=False)
        if self.trackers is not None:
            self.trackers.close()
        await self._record.close()

    async def in_learner_thread(self, work: Callable[[], Result]) -> Result:
        """Run blocking work in the learner's thread."""

        def watched() -> Result:
            with self.learner.watch.at_work():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._learner_thread, watched)

    async def publish(self, version: int) -> None:
        """Make every policy server serve the learner's weights as `version`, and keep them, through outages."""
        with self.clock.phase(RunPhase.PUBLISH):
            await self.through_outages(lambda: self.publisher.publish(self.learner, version), self.publisher.unready)
        self.status.version = version

    async def record_episodes(self, step: int, groups: Sequence[Group], uses: Sequence[Sequence[TrainingUse]]) -> None:
        """Begin to write the episodes of a step to the record, while the run goes on; `save_checkpoint` waits for it.

        Until they are there the journal keeps them. Raises what went wrong with the step before.
        """

        unrecorded = {place_of(group)[0] for group in self.drawn}

        def write() -> None:
            self.run_dir.write_episodes(step, groups, uses)
            self.rollouts.journal.close(step, but=unrecorded)

        await self._record.written()
        self._record.begin(write)

    async def check_sampler(self) -> None:
        """Compare the served policy with the learner on a few tokens.

        Raises TrainingError if they are further apart than `alarms.start_mismatch_ceiling`.
        """
        ceiling = self.settings.alarms.start_mismatch_ceiling
        if ceiling is None:
            return
        sequences = await self.through_outages(
            lambda: probe(self.agent, self.train, self.rollouts.sampling, str(self.publisher.version)),
            self.publisher.reconcile,
        )
        learned = await self.in_learner_thread(lambda: self.learner.logprobs(sequences))
        apart = compare(self.agent, sequences, learned, ceiling)
        tokens = sum(sequence.sampled_tokens for sequence in sequences)
        self.status.log(f"sampler and learner are {apart:.4f} nats per token apart on {tokens} tokens")

    async def evaluate(self, name: str) -> None:
        """Ask the held-out questions of an evaluation; record, track and log the results."""
        with self.clock.phase(RunPhase.EVALUATION, len(self._evaluator.questions(name))):
            figures = await self._evaluator.evaluate(name)
        if name != SAMPLED:
            note_quality(self.run_dir.directory, self.publisher.version, name, figures_as_dict(figures))
        if self.trackers is not None:
            self.trackers.evaluation(name, self.status.step, figures_as_dict(figures))
        self.status.log(await asyncio.to_thread(self._evaluator.summary_line, name, figures))

    async def evaluate_once(self, name: str) -> None:
        """Like `evaluate`, unless the record has it from before an interruption (or from the start of a study)."""
        if await asyncio.to_thread(self._evaluator.is_done, name):
            self.status.log(f"evaluation {name!r} was taken from the record")
        else:
            await self.evaluate(name)

    async def save_checkpoint(self, step: int) -> None:
        """Save everything that the run needs to continue after `step` as if it had never stopped."""
        state = RunState(
            step=step,
            version=self.publisher.version,
            updates=self.learner.updates,
            question_cursors=dict(self.sampler.cursors),
            seconds=self.clock.seconds,
            curriculum=dict(self.sampler.success),
            roll_backs=self.rollbacks,
            difficulty=dict(self.sampler.difficulty),
            drawn={group: question.id for group, question in self.drawn.items()},
        )
        with self.clock.phase(RunPhase.CHECKPOINT):
            await self._record.written()
            await self.publisher.settled()
            await self.in_learner_thread(lambda: self._checkpoints.save(self.learner, state))

    async def restore(self) -> RunState | None:
        """Restore learner, questions and record to the last checkpoint, if there is one."""
        await self._record.written()
        state = await self.in_learner_thread(lambda: self._checkpoints.restore_latest(self.learner))
        if state is not None:
            self.sampler.cursors = dict(state.question_cursors)
            self.sampler.success = dict(state.curriculum)
            self.sampler.difficulty = dict(state.difficulty)
            questions = {question.id: question for question in self.train}
            self.drawn.clear()
            self.drawn.update((group, questions[each]) for group, each in state.drawn.items() if each in questions)
            self.clock.restore(state.seconds)
            self.rollbacks = max(self.rollbacks, state.roll_backs)
            self.run_dir.delete_steps_after(state.step)
            delete_quality_after(self.run_dir.directory, state.version)
            self.status.step = state.step
        return state

    async def open_trackers(self, after_step: int | None) -> None:
        """Begin the curves, or continue them after a step."""
        if self.trackers is not None:
            self.trackers.close()
        self.trackers = await asyncio.to_thread(Trackers, self.run_dir.directory, self.settings, after_step)

    async def through_outages(
        self, work: Callable[[], Awaitable[Result]], unready: Callable[[], Awaitable[str | None]] | None = None
    ) -> Result:
        """Do work that needs services, and repeat it when an unavailable service is back.

        Args:
            unready: returns what is unavailable, if the work needs fewer services than episodes do.

        Raises ServiceError if an available service refuses, or fails more often than `grpo.service_retries`; it has
        some seconds between tries.
        """
        failures = 0
        while True:
            try:
                return await work()
            except ServiceError as error:
                if error.status not in _MAY_PASS:
                    raise
                failures += not await self.rollouts.gate.wait_until_ready(unready)
                if failures > self.settings.grpo.service_retries:
                    raise
                if failures:
                    self.status.log(f"it is tried again, since every service is ready: {error}")
                    await asyncio.sleep(min(_PAUSE_SECONDS * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS))
