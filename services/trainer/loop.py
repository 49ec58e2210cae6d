"""The training loop: questions → episodes → rewards → advantages → update → publish, and everything between steps."""

from __future__ import annotations

import asyncio
import gc
from typing import Protocol

from research.errors import ServiceRefusalError, TrainingError
from services.trainer.entry import Entry, grpo_entries
from services.trainer.evaluation.evaluator import AFTER, BEFORE, SAMPLED, SFT, interim_name
from services.trainer.evaluation.report import write_report
from services.trainer.garbage import collected_between_steps
from services.trainer.grpo_step import GrpoStep
from services.trainer.model.memory import keep_freed_memory
from services.trainer.run import Run
from services.trainer.sft.phase import SftPhase, SupervisedStep
from services.trainer.status import RunPhase
from services.trainer.telemetry.alarms import alarms, strongest
from services.trainer.telemetry.forecast import seconds_left, step_seconds
from services.trainer.telemetry.metrics import summary_line


class TrainingStep(Protocol):
    """One kind of training step: `GrpoStep`, or `SupervisedStep` in the ablation that never samples."""

    async def take(self, step: int) -> Entry:
        """Train, publish the new weights, and return the entry for `metrics.jsonl` (the loop adds its `seconds`)."""
        ...

    async def close(self) -> None:
        """Break off what is under way for later steps."""
        ...


class TrainingLoop:
    """One run from its first evaluation to its report; can be paused and stopped between steps, and resumed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._sft = SftPhase(run)
        self._step: TrainingStep = (
            SupervisedStep(run, self._sft) if run.settings.ablation.kind == "supervised" else GrpoStep(run)
        )
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self._stop = False

    def pause(self) -> None:
        """Pause before the next step."""
        self._may_go_on.clear()

    def resume(self) -> None:
        self._may_go_on.set()

    def stop(self) -> None:
        """End after the current step, with a checkpoint."""
        self._stop = True
        self._may_go_on.set()

    @property
    def stuck(self) -> str | None:
        """What hangs for so long that only a restart helps, or None."""
        return self._run.learner.watch.stuck

    async def run(self) -> None:
        """Train to the end, or until stopped.

        Raises:
            TrainingError, ServiceError: the run cannot continue; the last checkpoint is intact.
        """
        try:
            with collected_between_steps():
                await self._train()
        except ServiceRefusalError as error:
            raise TrainingError(
                f"{error}; every finished episode and step is kept: once that is mended, the same command goes on"
            ) from error
        finally:
            await self._step.close()
            await self._run.close()

    async def _train(self) -> None:
        run, steps = self._run, self._run.settings.grpo.steps
        interval, saves = run.settings.evaluation.interval, run.settings.checkpoints.interval
        step = saved = await self._start()
        out_of_time = False
        self._forecast()
        while step < steps and not await self._wait_while_paused():
            if out_of_time := self._is_out_of_time():
                run.status.log(f"the run ends after step {step} of {steps}: another step would exceed grpo.minutes")
                if step % saves:
                    await run.save_checkpoint(step)
                break
            step += 1
            await self._take(step)
            if (back_to := await self._handle_alarms(step)) < step:
                step = saved = back_to
                continue
            if interval and step % interval == 0 and step < steps:
                await run.evaluate(interim_name(step))
            if step % saves == 0 or step == steps or self._stop:
                await run.save_checkpoint(step)
                saved = step
            self._forecast()
        if step < steps and not out_of_time:
            if step > saved:  # it was paused first
                await run.save_checkpoint(step)
            run.status.enter(RunPhase.STOPPED)
            run.status.log(f"the run stopped after step {step}; start it again to continue")
            return
        await self._step.close()
        if step:
            await run.evaluate(AFTER)
        minutes = run.settings.grpo.minutes if out_of_time else None
        await asyncio.to_thread(write_report, run.run_dir, run.clock.seconds, minutes=minutes)
        run.status.enter(RunPhase.FINISHED)
        run.status.log(f"the run is finished; report, plot and summary are in {run.run_dir.directory}")

    async def _start(self) -> int:
        """Bring learner and policy to where the run stands; returns the number of finished steps."""
        run = self._run
        run.status.enter(RunPhase.STARTING)
        keep_freed_memory()
        await run.in_learner_thread(run.learner.set_torch_threads)
        state = await run.restore()
        await run.open_trackers(state.step if state is not None else None)
        if state is not None:
            run.status.log(f"the run continues after step {state.step}, from the last checkpoint")
            await run.publish(state.version)
            await run.check_sampler()
        elif run.run_dir.metrics():
            raise TrainingError(
                f"{run.run_dir.directory} has steps but no checkpoint to continue from; start over with --fresh, "
                "or give another name with run=…"
            )
        else:
            run.rollouts.journal.delete_after(0)
            await run.publish(0)
            await run.check_sampler()
            await run.evaluate_once(BEFORE)
            if run.settings.sft.enabled:
                await self._sft.train()
                await run.publish(1)
            await run.save_checkpoint(0)
        step = state.step if state is not None else 0
        if step == 0 and run.settings.sft.enabled:
            await run.evaluate_once(SFT)
        if step == 0 and run.settings.evaluation.pass_at_k_per_kind:
            await run.evaluate_once(SAMPLED)
        return step

    async def _take(self, step: int) -> None:
        run, before = self._run, self._run.clock.seconds
        run.status.step = step
        gc.collect()
        entry = await self._step.take(step)
        entry["seconds"] = run.clock.since(before)
        await asyncio.to_thread(run.run_dir.add_metrics, entry)
        if run.trackers is not None:
            run.trackers.step(step, entry)
        run.status.log(summary_line(entry, run.settings.grpo.steps))

    async def _handle_alarms(self, step: int) -> int:
        """Act on the alarms; returns the number of finished steps, which is less after a rollback."""
        run = self._run
        fired = alarms(grpo_entries(run.run_dir.metrics()), run.settings.alarms)
        for alarm in fired:
            run.status.log(f"step {step}: WARNING: {alarm}")
        worst = strongest(fired)
        if worst is None or worst.action == "warn":
            return step
        if worst.action == "stop" or run.rollbacks >= run.settings.alarms.max_rollbacks:
            raise TrainingError(f"an alarm stopped the run after step {step}: {worst}")
        return await self._roll_back()

    async def _roll_back(self) -> int:
        """Return to the last checkpoint, but continue with other questions; returns its step."""
        run = self._run
        run.rollbacks += 1
        await self._step.close()
        cursors, spent = dict(run.sampler.cursors), dict(run.clock.seconds)
        state = await run.restore()
        if state is None:
            raise TrainingError("there is no checkpoint to roll back to")
        run.sampler.cursors = cursors  # the same questions would lead to the same alarm
        run.clock.restore(spent)
        run.drawn.clear()
        run.rollouts.journal.delete_after(state.step)
        await run.open_trackers(state.step)
        run.status.log(f"the run was rolled back to step {state.step} and continues with other questions")
        await run.publish(run.publisher.version + 1)
        await run.save_checkpoint(state.step)
        return state.step

    def _is_out_of_time(self) -> bool:
        """Whether another step and the last evaluation would exceed `grpo.minutes`; the first step is always taken."""
        entries, minutes = self._run.run_dir.metrics(), self._run.settings.grpo.minutes
        if minutes is None or not entries:
            return False
        seconds = self._run.clock.seconds
        last_evaluation = seconds.get(RunPhase.EVALUATION, 0.0) / 2
        return sum(seconds.values()) + step_seconds(entries) + last_evaluation > minutes * 60

    def _forecast(self) -> None:
        """Forecast how long the rest will take, as soon as one step is finished."""
        if entries := self._run.run_dir.metrics():
            self._run.status.forecast(seconds_left(self._run.settings, entries, self._run.clock.seconds))

    async def _wait_while_paused(self) -> bool:
        """Wait while the run is paused; True if it is to stop."""
        if not self._may_go_on.is_set():
            self._run.status.enter(RunPhase.PAUSED)
            await self._may_go_on.wait()
        return self._stop
