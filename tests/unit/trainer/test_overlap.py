"""Groups under way while the learner updates: the bound on their age, what replaces them, and how they end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from research.episode.agent import Generation, Sampling, SearchAgent
from research.errors import TrainingError
from research.prompts import Prompt
from research.questions import Question
from research.questions.sampler import QuestionSampler
from research.settings import EpisodeConfig
from services.trainer.learner.advantages import has_signal
from services.trainer.rollout.batches import Taken, TakenGroups
from services.trainer.rollout.gate import OutageError, ServiceGate
from services.trainer.rollout.journal import EpisodeJournal
from services.trainer.rollout.overlap import OverlappedGroups
from services.trainer.rollout.refill import Sampled
from services.trainer.rollout.rollouts import Rollouts
from services.trainer.rollout.versions import Versions
from services.trainer.status import RunPhase, RunStatus
from tests.support.characters import CharacterTokenizer, Script, Shelf
from tests.support.tiny_model import tiny_settings
from tests.unit.episode.test_episode import ANSWER

WRONG = ANSWER.replace("Paris", "Rome")


class Policy:
    """Answers as soon as a question is released, with the version that is served then."""

    def __init__(self) -> None:
        self.version, self.calls = 1, 0
        self.asked: set[str] = set()
        self.released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.silent: set[str] = set()  # questions that all episodes answer alike

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        self.calls += 1
        text, right = CharacterTokenizer().decode(prompt_ids).removeprefix("<|im_start|>"), self.calls % 2
        self.asked.add(text)
        await self.released[text].wait()
        answer = ANSWER if right or text in self.silent else WRONG
        said = await Script([answer]).generate(prompt_ids, max_tokens, sampling)
        return replace(said, versions=[str(self.version)] * len(said.token_ids))

    def release(self, *numbers: int) -> None:
        for number in numbers:
            self.released[f"question {number}"].set()


class Trainer:
    """What surrounds the groups in a run: a sampler that asks questions in their order, and versions."""

    def __init__(self, directory: Path, staleness: int, *overrides: str) -> None:
        self.policy, self.status = Policy(), RunStatus("test", 9)
        given = ("grpo.questions_per_step=2", "grpo.group_size=2", "grpo.train_per_group=None", "grpo.steps=9")
        self.grpo = tiny_settings(directory, *given, *overrides).grpo
        limits = EpisodeConfig(max_tokens=3000)
        agent = SearchAgent(self.policy, Shelf([]), CharacterTokenizer(), Prompt("none", ""), limits, 4000)

        async def all_ready() -> None:
            return None

        gate = ServiceGate(all_ready, 1.0, self.status)
        versions = Versions(lambda: self.policy.version, staleness, first=1)
        self.rollouts = Rollouts(agent, Sampling(), gate, 0, versions, EpisodeJournal(directory), seed=1)
        self.drawn: dict[str, Question] = {}
        self.record = TakenGroups(directory)
        questions = [Question(str(number), f"question {number}", ("Paris",)) for number in range(99)]
        self.sampler = QuestionSampler(questions, {}, 1)
        self.sampler._orders[""] = (0, list(range(99)))
        signal = partial(has_signal, grpo=self.grpo)
        self.groups = OverlappedGroups(
            self.rollouts, self.sampler, self.record, signal, self.grpo, self.drawn, self.status
        )

    async def step(self, number: int) -> Sampled:
        """One step: an update follows, and its weights are published."""
        self.status.enter(RunPhase.ROLLOUT)
        sampled = await self.groups.sample(number)
        self.policy.version += 1
        await self.groups.replace(number)
        return sampled

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            try:
                await work()
            finally:
                await self.groups.close()

        asyncio.run(main())


def asked(sampled: Sampled) -> list[str]:
    return [group.question.id for group in sampled.groups]


def test_a_step_takes_the_oldest_that_are_finished_while_others_are_under_way(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, 1)

    async def work() -> None:
        trainer.policy.release(3, 1)
        assert sorted(asked(await trainer.step(1))) == ["1", "3"]
        assert [*trainer.drawn] == ["1.0", "1.2", "2.0", "2.1"]  # those of step 2 were drawn when step 1 was published
        trainer.policy.release(0, 2)
        await asyncio.wait([trainer.groups._stream._groups[group] for group in ("1.0", "1.2")])
        trainer.policy.release(*range(9))
        assert asked(await trainer.step(2)) == ["0", "2"]
        assert trainer.record.read(2) == [Taken("1.0", 2), Taken("1.2", 2)]

    trainer.run(work)


def test_a_step_has_the_kinds_of_questions_that_it_drew_whatever_is_finished_first(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, 2, "grpo.questions_per_step=3")
    kinds = {number: "three_hop" if number % 3 == 2 else "one_hop" for number in range(99)}
    questions = [Question(str(n), f"question {n}", ("Paris",), kind) for n, kind in kinds.items()]
    trainer.sampler = trainer.groups._sampler = QuestionSampler(questions, {"one_hop": 2 / 3, "three_hop": 1 / 3}, 1)

    async def work() -> None:
        easy = [number for number, kind in kinds.items() if kind == "one_hop"]
        trainer.policy.release(*easy)
        for number in range(1, 5):
            step = asyncio.create_task(trainer.step(number))
            done, _ = await asyncio.wait([step], timeout=0.2)
            assert not done, "it took only what is quick"
            oldest = next(question for question in trainer.drawn.values() if question.kind == "three_hop")
            trainer.policy.release(int(oldest.id))
            sampled = await step
            assert Counter(group.question.kind for group in sampled.groups) == {"one_hop": 2, "three_hop": 1}
            assert Counter(question.kind for question in trainer.drawn.values()) == {"one_hop": 6, "three_hop": 3}

    trainer.run(work)


def test_a_step_that_can_have_no_more_of_a_kind_takes_another(tmp_path: Path) -> None:
    """Without a mix a question that is dropped is replaced by any."""
    trainer = Trainer(tmp_path, 1)
    trainer.sampler._pools[""][:] = [
        Question(str(n), f"question {n}", ("Paris",), "rare" if n < 2 else "often") for n in range(99)
    ]

    async def work() -> None:
        trainer.policy.release(1, 2)
        assert sorted(asked(await trainer.step(1))) == ["1", "2"], "one of each kind, as they are under way"
        trainer.policy.release(*range(3, 99))
        trainer.policy.version += 1  # the rare one that is left is too old now, and so is question 3
        sampled = await asyncio.wait_for(trainer.step(2), 20)
        assert sampled.dropped == 2
        assert {group.question.kind for group in sampled.groups} == {"often"}

    trainer.run(work)


def test_a_rare_kind_without_a_mix_is_trained_on_before_it_is_too_old(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, 3, "grpo.questions_per_step=4")
    trainer.sampler._pools[""][:] = [
        Question(str(n), f"question {n}", ("Paris",), "rare" if n == 5 else "often") for n in range(99)
    ]

    async def work() -> None:
        trainer.policy.release(*range(99))
        steps = []
        for number in range(1, 6):
            await asyncio.wait(trainer.groups._stream._groups.values()) if number > 1 else None
            sampled = await trainer.step(number)
            assert (len(sampled.groups), sampled.dropped) == (4, 0)
            steps.append([group.question.kind for group in sampled.groups].count("rare"))
        assert steps == [0, 0, 0, 1, 0], "it was begun with the first weights, and step 4 was its last"

    trainer.run(work)


def test_a_group_that_is_too_old_is_dropped_and_counted_and_another_question_asked(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, 1)

    async def work() -> None:
        trainer.policy.release(*range(1, 99))  # question 0 has to wait
        for number in (1, 2):
            sampled = await trainer.step(number)
            assert sampled.dropped == 0
        assert "1.0" in trainer.drawn
        sampled = await trainer.step(3)
        assert sampled.dropped == 1
        assert "1.0" not in trainer.drawn
        assert len(trainer.drawn) == 4
        assert Taken("1.0", None) in (trainer.record.read(3) or [])

    trainer.run(work)


def test_one_that_began_in_time_but_was_finished_too_late_is_dropped(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, 1)

    async def work() -> None:
        trainer.policy.release(*range(1, 99))
        await trainer.step(1)
        trainer.policy.release(0)
        await asyncio.wait(trainer.groups._stream._groups.values())
        trainer.policy.version += 2  # it was finished under version 2, and version 4 is published now
        sampled = await trainer.step(2)
        assert sampled.dropped == 4
        assert {trainer.rollouts.versions.staleness(m.episode) for g in sampled.groups for m in g.members} == {1}

    trainer.run(work)


def test_no_more_is_drawn_than_the_last_steps_need(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, 2, "grpo.steps=4")

    async def work() -> None:
        trainer.policy.release(*range(99))
        under_way = []
        for number in range(1, 5):
            await trainer.step(number)
            under_way.append(len(trainer.drawn))
        assert under_way == [6, 4, 2, 0]

    trainer.run(work)


@pytest.mark.parametrize("seed", range(12))
def test_the_bound_holds_whatever_is_finished_when(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    staleness = rng.randint(1, 3)
    trainer = Trainer(tmp_path, staleness, "grpo.refill_rounds=1")
    trainer.policy.silent = {f"question {n}" for n in rng.sample(range(40), 15)}

    async def release_one_by_one() -> None:
        while True:
            waiting = [q for q in trainer.drawn.values() if not trainer.policy.released[q.text].is_set()]
            if waiting:
                trainer.policy.release(int(rng.choice(waiting).id))
            await asyncio.sleep(0.001)  # the journal is written in threads

    async def work() -> None:
        releasing = asyncio.create_task(release_one_by_one())
        for number in range(1, 7):
            sampled, newest = await trainer.step(number), trainer.policy.version - 1
            ages = [newest - int(v) for g in sampled.groups for m in g.members for v in m.episode.weight_versions]
            assert max(ages) <= staleness
            replaced = len(sampled.groups) - 2
            assert 0 <= replaced <= 2
            assert sampled.signal_after == 2 or replaced == 2
            assert len(trainer.drawn) == min((staleness + 1) * 2, (9 - number) * 2)
        releasing.cancel()

    trainer.run(work)


def test_a_service_that_stays_away_ends_the_step(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, 1)

    async def gone(*_: Any) -> None:
        raise TrainingError("the retriever does not answer; waited 1 s")

    async def work() -> None:
        trainer.rollouts.gate.wait_until_ready = gone  # type: ignore[method-assign,assignment]
        with pytest.raises(TrainingError, match="does not answer"):
            await trainer.step(1)

    trainer.run(work)


def test_an_outage_between_two_steps_is_forgotten_by_the_next(tmp_path: Path) -> None:
    """A pause, or a long update, may outlast what groups under way wait for a service."""
    trainer = Trainer(tmp_path, 1)
    ready = trainer.rollouts.gate.wait_until_ready

    async def gone(*_: Any) -> bool:
        raise OutageError("the retriever does not answer; waited 1 s")

    async def work() -> None:
        trainer.policy.release(0, 1)
        await trainer.step(1)
        under_way = trainer.groups._stream
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(trainer.rollouts.gate, "wait_until_ready", gone)
            await under_way.close()
            await under_way.begin(trainer.drawn)
            await asyncio.wait(under_way._groups.values())
        assert all(isinstance(task.exception(), OutageError) for task in under_way._groups.values())
        assert trainer.rollouts.gate.wait_until_ready == ready
        trainer.policy.release(*range(9))
        assert sorted(asked(await trainer.step(2))) == ["2", "3"]

    trainer.run(work)


def test_a_lower_bound_has_fewer_groups_under_way(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, 3)
    trainer.policy.release(*range(99))

    async def work() -> None:
        await trainer.step(1)
        assert len(trainer.drawn) == 8
        trainer.rollouts.versions = replace(trainer.rollouts.versions, max_staleness=1)
        sizes = []
        for number in range(2, 6):
            await trainer.step(number)
            sizes.append(len(trainer.drawn))
        assert sizes == [6, 4, 4, 4]

    trainer.run(work)


def test_what_an_unfinished_group_had_is_in_the_journal_and_is_taken_again(tmp_path: Path) -> None:
    first = Trainer(tmp_path, 1)

    async def work() -> None:
        first.policy.release(0, 1)
        await first.step(1)
        first.policy.release(2, 3)
        await asyncio.wait([first.groups._stream._groups[group] for group in ("1.2", "1.3")])

    first.run(work)
    second = Trainer(tmp_path, 1)  # of the process that comes after; its checkpoint is from before step 1

    async def again() -> None:
        sampled = await second.step(1)
        assert asked(sampled) == ["0", "1"]
        assert asked(await second.step(2)) == ["2", "3"]  # they were finished, though no step had taken them
        assert not second.policy.asked & {f"question {number}" for number in range(4)}
        assert len(second.drawn) == 4

    second.run(again)


def test_what_is_damaged_on_the_disk_is_sampled_again(tmp_path: Path) -> None:
    first = Trainer(tmp_path, 1)

    async def work() -> None:
        first.policy.release(*range(9))
        await first.step(1)
        await first.step(2)

    first.run(work)
    path = tmp_path / "step-000001.journal.jsonl"
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:1]))
    second = Trainer(tmp_path, 1)

    async def again() -> None:
        second.policy.release(*range(9))
        for number in (1, 2, 3):
            assert len(asked(await second.step(number))) == 2
        assert any("not all of what it took before" in line for line in second.status.lines)

    second.run(again)


def test_what_was_taken_or_finished_in_another_form_is_sampled_again(tmp_path: Path) -> None:
    first = Trainer(tmp_path, 1)

    async def work() -> None:
        first.policy.release(*range(4))
        assert asked(await first.step(1)) == ["0", "1"]

    first.run(work)
    for path in tmp_path.glob("step-*.journal.jsonl"):
        path.write_text(path.read_text().replace('"form":"tags"', '"form":"tool_calls"'))
    second = Trainer(tmp_path, 1)  # its checkpoint is from before step 1

    async def again() -> None:
        second.policy.release(*range(9))
        for number in (1, 2):
            groups = (await second.step(number)).groups
            assert {member.episode.form for group in groups for member in group.members} == {"tags"}

    second.run(again)


def test_what_a_step_asked_instead_and_took_itself_is_not_begun_again(tmp_path: Path) -> None:
    first = Trainer(tmp_path, 1, "grpo.refill_rounds=1")
    first.policy.silent = {"question 0"}

    async def work() -> None:
        first.policy.release(0, 1, 4)
        assert asked(await first.step(1)) == ["0", "1", "4"]  # 4 was asked instead of 0, by the same step

    first.run(work)
    second = Trainer(tmp_path, 1, "grpo.refill_rounds=1")  # its checkpoint is from before step 1

    async def again() -> None:
        assert asked(await second.step(1)) == ["0", "1", "4"]
        assert "1.4" not in second.groups._stream._groups
        second.policy.release(*range(99))
        assert len(asked(await second.step(2))) == 2

    second.run(again)
