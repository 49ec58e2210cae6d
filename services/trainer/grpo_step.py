"""A step of the method: sample a group of episodes per question, reward the answers, reinforce what did better."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from research.errors import TrainingError
from research.questions import Question
from services.trainer.entry import Entry
from services.trainer.groups import Group
from services.trainer.learner.advantages import compute_advantages, has_signal, rewards_of
from services.trainer.learner.grpo import UpdateReport
from services.trainer.model.batching import TrainingSequence
from services.trainer.rollout.batches import TakenGroups
from services.trainer.rollout.overlap import OverlappedGroups
from services.trainer.rollout.refill import Sampled, sample_groups
from services.trainer.run import Run
from services.trainer.status import RunPhase
from services.trainer.telemetry.metrics import rollout_entry, step_metrics


class GrpoStep:
    """Takes the groups of a step on-policy, or from those under way (`trainer.max_staleness`), and trains on them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._has_signal = partial(has_signal, grpo=run.settings.grpo, turns=run.settings.turns)
        self._overlapped = self._overlap() if run.settings.trainer.max_staleness else None

    async def take(self, step: int) -> Entry:
        run, grpo = self._run, self._run.settings.grpo
        sampled = await self._sample_episodes(step)
        groups, rollouts = sampled.groups, run.rollouts
        rollout = rollout_entry(sampled, grpo.questions_per_step, rollouts.versions, rollouts.unusable)
        infra_errors = rollouts.forget_failures()
        rewards = rewards_of(groups, run.settings, step)
        batch = await asyncio.to_thread(compute_advantages, groups, rewards, grpo, run.settings.turns)
        update = await self._update(step, batch.sequences)
        await run.record_episodes(step, groups, batch.uses(updated=update is not None))
        if update is not None:
            await run.publish(run.publisher.version + 1)
        if self._overlapped is not None:
            await self._overlapped.replace(step)
        measured = partial(
            step_metrics,
            step,
            run.publisher.version,
            groups,
            silent=batch.zero_signal_groups,
            infra_errors=infra_errors,
            rollout=rollout,
            update=update,
        )
        return await asyncio.to_thread(measured)

    async def close(self) -> None:
        """Break off the groups under way; what is finished of them is in the journal."""
        if self._overlapped is not None:
            await self._overlapped.close()

    def _overlap(self) -> OverlappedGroups:
        run = self._run
        record = TakenGroups(run.run_dir.episodes_dir)
        return OverlappedGroups(
            run.rollouts, run.sampler, record, self._has_signal, run.settings.grpo, run.drawn, run.status
        )

    async def _sample_episodes(self, step: int) -> Sampled:
        run = self._run
        with run.clock.phase(RunPhase.ROLLOUT):
            sampled = await (self._on_policy(step) if self._overlapped is None else self._overlapped.sample(step))
        for question, count in run.rollouts.unusable.items():
            run.status.log(f"step {step}: {count} episodes of question {question} are left out: see the trainer's log")
        if not any(group.members for group in sampled.groups):
            raise TrainingError(f"step {step}: no episode could be sampled; see the policy server's log")
        return sampled

    async def _on_policy(self, step: int) -> Sampled:
        run, grpo = self._run, self._run.settings.grpo
        if run.drawn:
            run.status.log(f"{len(run.drawn)} groups begun with trainer.max_staleness above 0 are dropped; it is 0 now")
            run.drawn.clear()

        async def sample(questions: Sequence[Question], first: int) -> list[Group]:
            run.status.total += len(questions) * grpo.group_size
            return await run.rollouts.groups(step, questions, grpo.group_size, run.status.advance, first=first)

        return await sample_groups(run.sampler, sample, self._has_signal, grpo.questions_per_step, grpo.refill_rounds)

    async def _update(self, step: int, sequences: list[TrainingSequence]) -> UpdateReport | None:
        run, report = self._run, None
        if sequences:
            with run.clock.phase(RunPhase.UPDATE):
                report = await run.in_learner_thread(partial(run.learner.grpo_update, sequences, step))
        if report is None:
            grpo = run.settings.grpo
            terms = grpo.kl_coefficient > 0 or grpo.entropy_coefficient > 0
            silent = not sequences or not (terms or any(any(each.advantages) for each in sequences))
            why = "no episode is left to train on" if silent else "a number in it was not finite"
            run.status.log(f"step {step}: the update was skipped because {why}")
        return report
