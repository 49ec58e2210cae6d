"""The training loop: questions → episodes → rewards → advantages → update → new weights serve the next request."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from research.episode.agent import SearchAgent
from research.errors import ServiceError, TrainingError
from research.questions import Question
from research.questions.sampler import QuestionSampler
from research.scoring.evaluate import figures_as_dict
from research.settings import Settings
from research.weights.run_weights import delete_quality_after, note_quality
from services.trainer.evaluation.evaluator import AFTER, BEFORE, SAMPLED, SFT, Evaluator, interim_name
from services.trainer.evaluation.report import write_report
from services.trainer.learner.advantages import compute_advantages
from services.trainer.learner.learner import Learner
from services.trainer.learner.malloc import keep_freed_memory
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.run_dir.checkpoints import CheckpointStore, RunState
from services.trainer.run_dir.run_dir import RunDirectory
from services.trainer.sft.phase import SftPhase, prepare_sft
from services.trainer.status import RunPhase, RunStatus
from services.trainer.telemetry.alarms import alarms, strongest
from services.trainer.telemetry.forecast import seconds_left, step_seconds
from services.trainer.telemetry.metrics import step_metrics, summary_line, supervised_metrics
from services.trainer.telemetry.trackers import Trackers
from services.trainer.weights.publisher import Publisher

Result = TypeVar("Result")

# HTTP statuses of a service that is not there (None: no answer at all), and no reason to give up.
_SERVICE_UNAVAILABLE = (None, 502, 503, 504)


class TrainingLoop:
    """One run from its first evaluation to its report; can be paused and stopped between steps, and resumed."""

    def __init__(
        self,
        settings: Settings,
        *,
        learner: Learner,
        agent: SearchAgent,
        rollouts: Rollouts,
        publisher: Publisher,
        run_dir: RunDirectory,
        status: RunStatus,
        train: Sequence[Question],
        held_out: Sequence[Question],
    ) -> None:
        self._settings = settings
        self._learner, self._agent, self._rollouts = learner, agent, rollouts
        self._publisher, self._run_dir, self._status = publisher, run_dir, status
        self._train = train
        self._evaluator = Evaluator(settings, agent, rollouts, run_dir, held_out, status)
        self._sampler = QuestionSampler(
            train, settings.questions.mix, settings.seed, candidates=settings.questions.curriculum_candidates
        )
        self._checkpoints = CheckpointStore(run_dir.checkpoints_dir, settings.checkpoints.keep)
        # The learner gets a thread of its own: torch's thread settings hold by thread, and the loop stays responsive.
        self._learner_thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self._stop = False
        self._trackers: Trackers | None = None
        self._traces: SftPhase | None = None
        self._rollbacks = 0

    def pause(self) -> None:
        """Hold before the next step."""
        self._may_go_on.clear()

    def resume(self) -> None:
        self._may_go_on.set()

    def stop(self) -> None:
        """End after the present step, with a checkpoint."""
        self._stop = True
        self._may_go_on.set()

    async def run(self) -> None:
        """Train to the end, or until stopped.

        Raises:
            TrainingError, ServiceError: what made going on impossible; the last checkpoint is whole.
        """
        try:
            await self._run()
        finally:
            self._learner.break_off()
            self._learner_thread.shutdown(wait=False)
            if self._trackers is not None:
                self._trackers.close()

    async def _run(self) -> None:
        settings, status = self._settings, self._status
        step = await self._start()
        out_of_time = False
        self._foresee()
        while step < settings.grpo.steps and not await self._wait_while_paused():
            if out_of_time := self._is_out_of_time():
                status.log(
                    f"ending after step {step} of {settings.grpo.steps}: another would take too long (grpo.minutes)"
                )
                if step % settings.checkpoints.interval:
                    await self._save_checkpoint(step)
                break
            step += 1
            status.step = step
            await self._step(step)
            if (back_to := await self._handle_alarms(step)) < step:
                step = back_to
                continue
            every = settings.evaluation.interval
            if every and step % every == 0 and step < settings.grpo.steps:
                await self._evaluate(interim_name(step))
            if step % settings.checkpoints.interval == 0 or step == settings.grpo.steps or self._stop:
                await self._save_checkpoint(step)
            self._foresee()
        if step < settings.grpo.steps and not out_of_time:
            status.enter(RunPhase.STOPPED)
            status.log(f"stopped after step {step}; start again to go on from there")
            return
        if step:
            await self._evaluate(AFTER)
        await asyncio.to_thread(
            write_report, self._run_dir, dict(self._seconds), minutes=settings.grpo.minutes if out_of_time else None
        )
        status.enter(RunPhase.FINISHED)
        status.log(f"finished; report, plot and summary are in {self._run_dir.directory}")

    async def _start(self) -> int:
        """Bring learner and policy to where the run stands; returns the number of finished steps."""
        self._status.enter(RunPhase.STARTING)
        keep_freed_memory()
        await self._in_learner_thread(self._learner.set_torch_threads)
        state = await self._restore()
        await self._open_trackers(state.step if state is not None else None)
        if state is not None:
            self._status.log(f"going on after step {state.step}, from the last checkpoint")
            await self._publish(state.version)
        elif self._run_dir.metrics():
            raise TrainingError(
                f"{self._run_dir.directory} has steps but no checkpoint to go on from; start over with --fresh, "
                "or give another name with run=…"
            )
        else:
            self._rollouts.journal.delete_after(0)
            await self._publish(0)
            await self._evaluate_once(BEFORE)
            if self._settings.sft.enabled:
                await self._sft()
                await self._publish(1)
            await self._save_checkpoint(0)
        step = state.step if state is not None else 0
        if step == 0 and self._settings.sft.enabled:
            await self._evaluate_once(SFT)
        if step == 0 and self._settings.evaluation.pass_at_k_per_kind:
            await self._evaluate_once(SAMPLED)
        return step

    async def _open_trackers(self, after_step: int | None) -> None:
        if self._trackers is not None:
            self._trackers.close()
        self._trackers = await asyncio.to_thread(Trackers, self._run_dir.directory, self._settings, after_step)

    async def _restore(self) -> RunState | None:
        """Take learner, questions and record back to the last checkpoint, if there is one."""
        state = await self._in_learner_thread(lambda: self._checkpoints.restore_latest(self._learner))
        if state is not None:
            self._sampler.cursors = dict(state.question_cursors)
            self._sampler.success = dict(state.curriculum)
            self._seconds = defaultdict(float, state.seconds)
            self._rollbacks = max(self._rollbacks, state.roll_backs)
            self._run_dir.delete_steps_after(state.step)
            delete_quality_after(self._run_dir.directory, state.version)
            self._status.step = state.step
        return state

    async def _sft(self) -> None:
        sft = self._settings.sft
        with self._timed_phase(RunPhase.SFT, sft.steps):
            phase = await self._sft_phase()
            self._status.log(f"sft: {sft.steps} supervised steps on {len(phase.sequences)} traces of the format")
            optimizer = self._learner.new_optimizer(sft.learning_rate)
            for number in range(sft.steps):
                loss = await self._in_learner_thread(partial(phase.step, number, self._learner, optimizer))
                self._status.advance()
                if number == 0 or (number + 1) % 5 == 0:
                    self._status.log(f"sft step {number + 1}/{sft.steps}: loss {loss:.3f} a token")
            self._learner.snapshot_reference()

    async def _sft_phase(self) -> SftPhase:
        if self._traces is None:
            self._traces = await self._through_outages(lambda: prepare_sft(self._settings, self._agent, self._train))
        return self._traces

    async def _step(self, step: int) -> None:
        before = self._seconds.copy()
        supervised = self._settings.ablation.kind == "supervised"
        entry = await (self._supervised_step(step) if supervised else self._grpo_step(step))
        entry["seconds"] = {phase: round(total - before[phase], 3) for phase, total in self._seconds.items()}
        self._run_dir.add_metrics(entry)
        if self._trackers is not None:
            self._trackers.step(step, entry)
        self._status.log(summary_line(entry, self._settings.grpo.steps))

    async def _grpo_step(self, step: int) -> dict[str, Any]:
        settings = self._settings.grpo
        self._rollouts.infra_errors = 0
        questions = self._sampler.draw(settings.questions_per_step)
        with self._timed_phase(RunPhase.ROLLOUT, len(questions) * settings.group_size):
            groups = await self._rollouts.groups(step, questions, settings.group_size, self._status.advance)
        if not any(group.members for group in groups):
            raise TrainingError(f"step {step}: not one episode could be sampled; see the log of the policy")
        self._sampler.update_curriculum((group.question, group.success) for group in groups if group.members)
        selection = compute_advantages(groups, self._settings, step)
        report = None
        if selection.sequences:
            with self._timed_phase(RunPhase.UPDATE):
                report = await self._in_learner_thread(lambda: self._learner.grpo_update(selection.sequences, step))
        if report is not None:
            await self._publish(self._publisher.version + 1)
        else:
            why = "no group carried a signal" if not selection.sequences else "the loss or its gradient was not finite"
            self._status.log(f"step {step}: no update, {why}")
        self._run_dir.write_episodes(step, groups)
        self._rollouts.journal.close(step)
        return step_metrics(
            step,
            self._publisher.version,
            groups,
            silent=selection.zero_signal_groups,
            infra_errors=self._rollouts.infra_errors,
            update=report,
        )

    async def _supervised_step(self, step: int) -> dict[str, Any]:
        """The supervised phase continues, on the same traces, for this step's share of `ablation.seconds`."""
        sft, ablation = self._settings.sft, self._settings.ablation
        phase = await self._sft_phase()
        seconds = ablation.seconds / max(self._settings.grpo.steps, 1)
        losses: list[float] = []
        with self._timed_phase(RunPhase.UPDATE):
            started = time.perf_counter()
            while not losses or time.perf_counter() - started < seconds:
                number = sft.steps + self._learner.updates
                losses.append(await self._in_learner_thread(partial(self._supervised, phase, number)))
                self._learner.updates += 1
        await self._publish(self._publisher.version + 1)
        return supervised_metrics(step, self._publisher.version, losses, sft.learning_rate)

    def _supervised(self, phase: SftPhase, number: int) -> float:
        self._learner.set_learning_rate(self._settings.sft.learning_rate)
        return phase.step(number, self._learner, self._learner.optimizer)

    async def _handle_alarms(self, step: int) -> int:
        """Do what the alarms ask for; returns the number of finished steps, which is less after a roll-back."""
        if self._settings.ablation.kind == "supervised":
            return step
        fired = alarms(self._run_dir.metrics(), self._settings.alarms)
        for alarm in fired:
            self._status.log(f"step {step}: WARNING: {alarm}")
        worst = strongest(fired)
        if worst is None or worst.action == "warn":
            return step
        if worst.action == "stop" or self._rollbacks >= self._settings.alarms.max_rollbacks:
            raise TrainingError(f"stopped after step {step}: {worst}")
        self._rollbacks += 1
        cursors = dict(self._sampler.cursors)
        state = await self._restore()
        assert state is not None
        self._sampler.cursors = cursors  # with the same questions it would go the same way again
        self._rollouts.journal.delete_after(state.step)
        await self._open_trackers(state.step)
        self._status.log(f"rolled back to step {state.step}; going on with other questions")
        await self._publish(self._publisher.version + 1)
        await self._save_checkpoint(state.step)
        return state.step

    async def _publish(self, version: int) -> None:
        with self._timed_phase(RunPhase.PUBLISH):
            state = self._learner.model.state_dict()
            await self._through_outages(lambda: self._publisher.publish(state, version), self._publisher.unready)
        self._status.version = version

    async def _evaluate(self, name: str) -> None:
        with self._timed_phase(RunPhase.EVALUATION, len(self._evaluator.questions(name))):
            figures = await self._evaluator.evaluate(name)
        if name != SAMPLED:
            note_quality(self._run_dir.directory, self._publisher.version, name, figures_as_dict(figures))
        if self._trackers is not None:
            self._trackers.evaluation(name, self._status.step, figures_as_dict(figures))
        self._status.log(self._evaluator.summary_line(name, figures))

    async def _evaluate_once(self, name: str) -> None:
        """As `_evaluate`, unless the record has it from before an interruption (or from the start of a study)."""
        if await asyncio.to_thread(self._evaluator.is_done, name):
            self._status.log(f"evaluation {name!r}: taken from the record")
        else:
            await self._evaluate(name)

    async def _save_checkpoint(self, step: int) -> None:
        state = RunState(
            step=step,
            version=self._publisher.version,
            updates=self._learner.updates,
            question_cursors=dict(self._sampler.cursors),
            seconds=dict(self._seconds),
            curriculum=dict(self._sampler.success),
            roll_backs=self._rollbacks,
        )
        with self._timed_phase(RunPhase.CHECKPOINT):
            await self._in_learner_thread(lambda: self._checkpoints.save(self._learner, state))

    async def _through_outages(
        self, work: Callable[[], Awaitable[Result]], unready: Callable[[], Awaitable[str | None]] | None = None
    ) -> Result:
        """Do what needs a service, and again when a service that was away is back.

        Args:
            unready: tells what is down, if that is less than all that episodes need.

        Raises ServiceError if the service is there and refuses, or fails more often than `grpo.service_retries`.
        """
        failures = 0
        while True:
            try:
                return await work()
            except ServiceError as error:
                failures += not await self._rollouts.gate.wait_until_ready(unready)
                if error.status not in _SERVICE_UNAVAILABLE or failures > self._settings.grpo.service_retries:
                    raise

    def _is_out_of_time(self) -> bool:
        """Whether another step and the last evaluation exceed `grpo.minutes`; the first step is always taken."""
        metrics, minutes = self._run_dir.metrics(), self._settings.grpo.minutes
        if minutes is None or not metrics:
            return False
        last = self._seconds["evaluation"] / 2
        return sum(self._seconds.values()) + step_seconds(metrics) + last > minutes * 60

    def _foresee(self) -> None:
        """Tell the status how long the rest will take, as soon as there are steps to go by."""
        if metrics := self._run_dir.metrics():
            self._status.forecast(seconds_left(self._settings, metrics, self._seconds))

    async def _wait_while_paused(self) -> bool:
        if not self._may_go_on.is_set():
            self._status.enter(RunPhase.PAUSED)
            await self._may_go_on.wait()
        return self._stop

    async def _in_learner_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._learner_thread, work)

    @contextmanager
    def _timed_phase(self, phase: RunPhase, total: int = 0) -> Iterator[None]:
        self._status.enter(phase, total)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[str(phase)] += time.perf_counter() - started
