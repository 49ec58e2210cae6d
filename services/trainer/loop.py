"""The training loop: questions → episodes → rewards → advantages → update → new weights serve the next request."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

from research.config import Settings
from research.episode import SearchAgent
from research.errors import ConfigurationError
from research.evaluate import evaluate
from research.questions import Question
from research.questions.sampling import first_of_each_kind
from research.questions.stream import QuestionStream
from services.trainer.checkpoint import CheckpointStore, RunState
from services.trainer.grpo import best_and_worst, group_advantages
from services.trainer.learner import Learner, UpdateReport
from services.trainer.memory import keep_freed_memory
from services.trainer.publish import Publisher
from services.trainer.record import RunRecord
from services.trainer.report import write_report
from services.trainer.rollouts import Group, Rollouts, require_version
from services.trainer.sequences import TrainingSequence, sequence_of
from services.trainer.status import RunPhase, RunStatus
from services.trainer.warmup import make_traces

Result = TypeVar("Result")


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
        record: RunRecord,
        status: RunStatus,
        train: Sequence[Question],
        held_out: Sequence[Question],
    ) -> None:
        self._settings = settings
        self._learner, self._agent, self._rollouts = learner, agent, rollouts
        self._publisher, self._record, self._status = publisher, record, status
        self._train, self._held_out = train, first_of_each_kind(held_out, settings.evaluation.per_kind)
        self._stream = QuestionStream(train, settings.questions.mix, settings.seed)
        self._checkpoints = CheckpointStore(record.checkpoints_dir, settings.checkpoints.keep)
        # The learner gets a thread of its own: torch's thread settings hold by thread, and the loop stays responsive.
        self._learner_thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self._stop = False

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
        settings, status = self._settings, self._status
        step = await self._start()
        while step < settings.grpo.steps and not await self._told_to_stop():
            step += 1
            status.step = step
            await self._step(step)
            every = settings.evaluation.every
            if every and step % every == 0 and step < settings.grpo.steps:
                await self._evaluate(f"step-{step:06d}")
            if step % settings.checkpoints.every == 0 or step == settings.grpo.steps or self._stop:
                await self._save_checkpoint(step)
        if step < settings.grpo.steps:
            status.enter(RunPhase.STOPPED)
            status.say(f"stopped after step {step}; start again to go on from there")
            return
        await self._evaluate("after")
        await asyncio.to_thread(write_report, self._record, dict(self._seconds))
        status.enter(RunPhase.FINISHED)
        status.say(f"finished; report, plot and summary are in {self._record.directory}")

    async def _start(self) -> int:
        """Bring learner and policy to where the run stands; returns the number of finished steps."""
        self._status.enter(RunPhase.STARTING)
        keep_freed_memory()
        await self._in_learner_thread(self._learner.prepare_thread)
        state = await self._in_learner_thread(lambda: self._checkpoints.restore_latest(self._learner))
        if state is not None:
            self._stream.cursors = dict(state.question_cursors)
            self._seconds.update(state.seconds)
            self._record.forget_steps_after(state.step)
            self._status.step = state.step
            self._status.say(f"going on after step {state.step}, from the last checkpoint")
            await self._publish(state.version)
            return state.step
        self._record.forget_steps_after(0)
        self._record.forget_evaluations()
        await self._publish(0)
        await self._evaluate("before")
        if self._settings.warmup.enabled:
            await self._warm_up()
            await self._publish(1)
            await self._evaluate("warmup")
        await self._save_checkpoint(0)
        return 0

    async def _warm_up(self) -> None:
        warmup = self._settings.warmup
        counts = {"one_hop": warmup.one_hop, "two_hop": warmup.two_hop}
        with self._phase(RunPhase.WARMUP, warmup.steps):
            traces = await make_traces(self._agent, self._train, counts, warmup.retry_share, self._settings.seed)
            if not traces:
                raise ConfigurationError("warmup: no training question has hops that the retriever can follow")
            self._status.say(f"warm-up: {warmup.steps} supervised steps on {len(traces)} traces of the format")
            sequences = [sequence_of(trace) for trace in traces]
            optimizer = self._learner.new_optimizer(warmup.learning_rate)
            for step in range(warmup.steps):
                start = step * warmup.batch_size
                batch = [sequences[i % len(sequences)] for i in range(start, start + warmup.batch_size)]
                loss = await self._in_learner_thread(partial(self._learner.supervised_update, batch, optimizer))
                self._status.advance()
                if step == 0 or (step + 1) % 5 == 0:
                    self._status.say(f"warm-up step {step + 1}/{warmup.steps}: loss {loss:.3f} a token")
            self._learner.freeze_reference()

    async def _step(self, step: int) -> None:
        settings = self._settings.grpo
        before = self._seconds.copy()
        self._rollouts.infra_errors = 0
        questions = self._stream.draw(settings.questions_per_step)
        with self._phase(RunPhase.ROLLOUT, len(questions) * settings.group_size):
            groups = await self._rollouts.groups(step, questions, settings.group_size, self._status.advance)
        sequences, silent = self._training_sequences(groups)
        report = None
        if sequences:
            with self._phase(RunPhase.UPDATE):
                report = await self._in_learner_thread(lambda: self._learner.grpo_update(sequences))
        if report is not None:
            await self._publish(self._publisher.version + 1)
        seconds = {phase: round(total - before[phase], 3) for phase, total in self._seconds.items()}
        entry = self._metrics(step, groups, silent, report, seconds)
        self._record.write_episodes(step, groups)
        self._record.add_metrics(entry)
        self._tell(entry, report, silent, len(groups))

    def _training_sequences(self, groups: Sequence[Group]) -> tuple[list[TrainingSequence], int]:
        """What is trained on, and how many groups carried no signal."""
        settings = self._settings.grpo
        sequences: list[TrainingSequence] = []
        silent = 0
        for group in groups:
            advantages = group_advantages(group.rewards)
            if advantages is None:
                silent += 1
                continue
            keep = settings.keep_per_group or len(group.members)
            for index in best_and_worst(group.rewards, keep):
                episode = group.members[index].episode
                if not (settings.mask_truncated and episode.stop_reason.truncated):
                    sequences.append(sequence_of(episode, advantages[index]))
        return sequences, silent

    def _metrics(
        self, step: int, groups: Sequence[Group], silent: int, report: UpdateReport | None, seconds: dict[str, float]
    ) -> dict[str, Any]:
        members = [member for group in groups for member in group.members]
        episodes = [member.episode for member in members]
        return {
            "step": step,
            "version": self._publisher.version,
            "reward": fmean(member.score.reward for member in members),
            "em": fmean(member.score.em for member in members),
            "f1": fmean(member.score.f1 for member in members),
            "well_formed": fmean(episode.format_fault is None for episode in episodes),
            "truncated": fmean(episode.stop_reason.truncated for episode in episodes),
            "searches": fmean(episode.searches for episode in episodes),
            "sampled_tokens": fmean(episode.sampled_tokens for episode in episodes),
            "stop_reasons": dict(Counter(str(episode.stop_reason) for episode in episodes)),
            "episodes": len(episodes),
            "silent_groups": silent,
            "infra_errors": self._rollouts.infra_errors,
            "update": report.as_dict() if report is not None else None,
            "seconds": seconds,
        }

    def _tell(self, entry: dict[str, Any], report: UpdateReport | None, silent: int, groups: int) -> None:
        took = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in entry["seconds"].items() if seconds >= 0.5)
        self._status.say(
            f"step {entry['step']}/{self._settings.grpo.steps}: reward {entry['reward']:.3f}, EM {entry['em']:.3f}, "
            f"{entry['searches']:.2f} searches, {entry['sampled_tokens']:.0f} tokens an episode, "
            f"version {entry['version']} ({took})"
        )
        if report is None:
            why = "no group carried a signal" if silent == groups else "the loss or its gradient was not finite"
            self._status.say(f"step {entry['step']}: no update, {why}")
        elif report.mismatch_kl > self._settings.grpo.mismatch_kl_warning:
            self._status.say(f"step {entry['step']}: WARNING: mismatch KL {report.mismatch_kl:.4f} nats a token")

    async def _publish(self, version: int) -> None:
        with self._phase(RunPhase.PUBLISH):
            state = self._learner.model.state_dict()
            await self._publisher.publish(state, version)
        self._status.version = version

    async def _evaluate(self, name: str) -> None:
        await self._rollouts.outage.wait_until_over()
        with self._phase(RunPhase.EVALUATION, len(self._held_out)):
            answered, figures = await evaluate(
                self._agent,
                self._held_out,
                concurrency=self._settings.policy.max_sequences,
                on_answer=self._status.advance,
            )
        require_version([a.episode for a in answered], str(self._publisher.version))
        self._record.write_evaluation(name, answered, figures)
        told = "; ".join(f"{kind} EM {f.em:.3f} F1 {f.f1:.3f} (n {f.n})" for kind, f in figures.items())
        self._status.say(f"evaluation {name!r} on held-out questions: {told}")

    async def _save_checkpoint(self, step: int) -> None:
        state = RunState(
            step=step,
            version=self._publisher.version,
            updates=self._learner.updates,
            question_cursors=dict(self._stream.cursors),
            seconds=dict(self._seconds),
        )
        with self._phase(RunPhase.CHECKPOINT):
            await self._in_learner_thread(lambda: self._checkpoints.save(self._learner, state))

    async def _told_to_stop(self) -> bool:
        if not self._may_go_on.is_set():
            self._status.enter(RunPhase.PAUSED)
            await self._may_go_on.wait()
        return self._stop

    async def _in_learner_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._learner_thread, work)

    @contextmanager
    def _phase(self, phase: RunPhase, total: int = 0) -> Iterator[None]:
        self._status.enter(phase, total)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[str(phase)] += time.perf_counter() - started
