"""Lists of questions: they leave places to others, take turns, and end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from research.episode.agent import Finish, Generation, Sampling
from research.errors import ServiceError
from services.policy.answer.service import AnswerService, AnswerTask
from services.policy.answer.turns import Turns
from tests.support.characters import CharacterTokenizer
from tests.support.loop_clock import let_pass
from tests.support.scripted_agent import OnePassage, agent_for

ANSWER = "<answer>\\boxed{Vincent van Gogh}</answer>"


@dataclass
class Held:
    """Answers each question when it is let go, and remembers the order in which they came."""

    tokenizer: CharacterTokenizer = field(default_factory=CharacterTokenizer)
    asked: list[str] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        question = self.tokenizer.decode(prompt_ids[1:])
        self.asked.append(question)
        await self.gates.setdefault(question, asyncio.Event()).wait()
        ids = self.tokenizer.encode(ANSWER)
        return Generation(ids, [0.0] * len(ids), ["0"] * len(ids), Finish.EOS)

    async def wait_for(self, count: int) -> None:
        while len(self.asked) < count:  # noqa: ASYNC110 (it is simpler than an event per count)
            await asyncio.sleep(0.001)

    def let_go(self, question: str) -> None:
        self.gates.setdefault(question, asyncio.Event()).set()


def run(scenario: Callable[[AnswerService, Held], Awaitable[None]], concurrency: int, list_timeout: float = 60) -> None:
    async def main() -> None:
        policy = Held()
        answering = AnswerService(
            agent_for(policy),  # type: ignore[arg-type]
            lambda _: policy,  # type: ignore[arg-type, return-value]
            policy.tokenizer,
            OnePassage(),
            concurrency=concurrency,
            timeout=60,
            list_timeout=list_timeout,
            max_question_chars=100,
        )
        async with asyncio.timeout(60):
            await scenario(answering, policy)

    asyncio.run(main())


def tasks(name: str, count: int) -> list[AnswerTask]:
    return [AnswerTask(f"{name}{number}") for number in range(count)]


def test_two_lists_leave_room_for_single_questions() -> None:
    async def scenario(answering: AnswerService, policy: Held) -> None:
        lists = [asyncio.create_task(answering.answer_all(tasks(name, 5))) for name in "ab"]
        await policy.wait_for(2)
        await asyncio.sleep(0)
        policy.let_go("single")
        assert (await answering.answer(AnswerTask("single"))).answer == "Vincent van Gogh"
        assert policy.asked[-1] == "single"
        for name in "ab":
            for number in range(5):
                policy.let_go(f"{name}{number}")
        assert [len(answers) for answers in await asyncio.gather(*lists)] == [5, 5]

    run(scenario, concurrency=4)


def test_lists_take_turns() -> None:
    async def scenario(answering: AnswerService, policy: Held) -> None:
        long = asyncio.create_task(answering.answer_all(tasks("long", 5)))
        await policy.wait_for(1)
        short = asyncio.create_task(answering.answer_all(tasks("short", 2)))
        for count in range(1, 8):
            await policy.wait_for(count)
            policy.let_go(policy.asked[-1])
        await asyncio.gather(long, short)
        assert policy.asked == ["long0", "long1", "short0", "long2", "short1", "long3", "long4"]

    run(scenario, concurrency=2)


def test_a_list_ends_in_its_time_and_says_how_far_it_came() -> None:
    async def scenario(answering: AnswerService, policy: Held) -> None:
        policy.let_go("a0")
        asked = asyncio.create_task(answering.answer_all(tasks("a", 3)))
        await policy.wait_for(2)
        let_pass(20)
        with pytest.raises(ServiceError, match="only 1 of 3 questions were answered within 20 s"):
            await asked
        policy.let_go("b0")
        policy.let_go("b1")
        assert len(await answering.answer_all(tasks("b", 2))) == 2

    run(scenario, concurrency=2, list_timeout=20)


def test_who_leaves_while_a_place_comes_gives_it_back() -> None:
    async def main() -> None:
        turns, entered = Turns(1), []

        async def enter(request: str) -> None:
            async with turns.place(request):
                entered.append(request)

        async with turns.place("first"):
            leaving = [asyncio.create_task(enter("leaving")) for _ in range(3)]
            last = asyncio.create_task(enter("last"))
            await asyncio.sleep(0)
            leaving[1].cancel()
        # The first of them has been given the place, but has not seen it yet.
        for task in leaving:
            task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(last, *leaving, return_exceptions=True)
        assert entered == ["last"]

    asyncio.run(main())
