"""The reward of an episode as a sum, shown apart, and a judge whose verdicts outlive a kill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from research.bench.judge import Verdicts
from research.episode.agent import Episode, StopReason
from research.errors import ServiceError, TrainingError
from research.questions import Question
from research.scoring.reward import score
from research.scoring.rewards import reward_functions
from research.settings.reward import RewardConfig
from research.strategies.chat import Completion, Message
from services.trainer.entry import RolloutEntry
from services.trainer.groups import Group, Member
from services.trainer.rollout.rewards import Judge, Rewards
from services.trainer.telemetry.metrics import step_metrics
from tests.support.scored import answered

QUESTION = Question("q", "Where?", ("Paris",))
RIGHT, LONGER, WRONG = (answered(text, searches=1) for text in ("Paris", "in Paris", "Rome"))


class Grader:
    """Finds every answer with "Paris" in it right; fails, or writes no verdict, as often as it is told."""

    def __init__(
        self, failures: int = 0, *, mute: bool = False, status: int | None = None, unread: str | None = None
    ) -> None:
        self.failures, self.mute, self.asked, self.status, self.unread = failures, mute, 0, status, unread

    async def complete_json(
        self, messages: list[Message], max_tokens: int, sampling: object, schema: Mapping[str, Any]
    ) -> Completion:
        self.asked += 1
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise ServiceError("the judge does not answer", status=self.status)
        given = json.loads(messages[-1].content)["given_answer"]
        if given == self.unread:
            raise ServiceError("it is filtered", status=self.status)
        text = "hm" if self.mute else json.dumps({"reason": "", "correct": "Paris" in given})
        return Completion(text, cut=False, prompt_tokens=1, sampled_tokens=1)


def judged(path: Path, grader: Grader, *episodes: Episode, retries: int = 2) -> list[float]:
    async def check() -> str | None:
        return "the judge is away" if grader.failures else None

    async def wait(check: Any) -> bool:
        was_away = False
        while await check() and retries > 2:
            was_away, grader.failures = True, grader.failures - 1
        return was_away

    async def run() -> list[float]:
        with Verdicts(path, "j") as verdicts:
            rewards = Rewards({"judge": 1.0}, {}, Judge("j", grader, verdicts, check, wait, retries))
            return [each.reward for each in await asyncio.gather(*(rewards.score(QUESTION, e) for e in episodes))]

    return asyncio.run(run())


def test_the_default_is_the_papers_reward() -> None:
    for episode in (RIGHT, LONGER, WRONG, answered("Paris", stop_reason=StopReason.TOKEN_LIMIT)):
        found = asyncio.run(Rewards().score(QUESTION, episode))
        plain = score(episode.answer, QUESTION.answers, episode.format_fault)
        assert (found.reward, found.em, found.f1, found.reason) == (plain.reward, plain.em, plain.f1, plain.reason)
        assert found.terms == {"f1": plain.reward}


def test_a_sum_shows_its_terms_in_the_score_and_in_metrics() -> None:
    chosen = RewardConfig(terms={"em": 0.75, "cover_em": 0.25})
    rewards = Rewards(chosen.terms, reward_functions(chosen))
    scores = [asyncio.run(rewards.score(QUESTION, episode)) for episode in (RIGHT, LONGER, WRONG)]
    assert [each.reward for each in scores] == [1.0, 0.25, 0.0]
    assert scores[1].terms == {"em": 0.0, "cover_em": 1.0}
    assert scores[1].reason.endswith("; 0.75 x em 0.00 + 0.25 x cover_em 1.00")
    members = [
        Member(episode, each, place)
        for place, (episode, each) in enumerate(zip((RIGHT, LONGER, WRONG), scores, strict=True))
    ]
    rollout: RolloutEntry = {"refill_rounds": 0, "signal_before": 1.0, "signal_after": 1.0, "unusable": []}
    groups = [Group("1.0", QUESTION, members)]
    entry = step_metrics(1, 1, groups, silent=0, infra_errors=0, rollout=rollout, update=None)
    assert entry["rewards"] == {"em": pytest.approx(1 / 3), "cover_em": pytest.approx(2 / 3)}
    assert entry["reward"] == pytest.approx(1.25 / 3)


def test_an_answer_is_judged_once_also_after_a_kill(tmp_path: Path) -> None:
    grader = Grader()
    assert judged(tmp_path / "verdicts.jsonl", grader, RIGHT, LONGER, LONGER, WRONG, WRONG) == [1, 1, 1, 0, 0]
    assert grader.asked == 3
    changed = Grader(mute=True)  # a judge that would say something else now
    assert judged(tmp_path / "verdicts.jsonl", changed, RIGHT, LONGER, WRONG) == [1, 1, 0]
    assert changed.asked == 0


def test_an_episode_in_bad_form_is_not_judged(tmp_path: Path) -> None:
    grader = Grader()
    cut = answered("Paris", searches=1, stop_reason=StopReason.TOKEN_LIMIT)
    assert judged(tmp_path / "verdicts.jsonl", grader, cut) == [0]
    assert grader.asked == 0


def test_no_verdict_counts_as_wrong_and_is_kept(tmp_path: Path) -> None:
    assert judged(tmp_path / "verdicts.jsonl", Grader(mute=True), RIGHT) == [0]
    assert judged(tmp_path / "verdicts.jsonl", Grader(), RIGHT) == [0]


def test_an_outage_of_the_judge_is_waited_out(tmp_path: Path) -> None:
    assert judged(tmp_path / "verdicts.jsonl", Grader(failures=40), RIGHT, retries=3) == [1]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_answer_that_a_judge_will_not_read_is_wrong_and_ends_no_run(tmp_path: Path, status: int) -> None:
    """As by a filter of its contents: the same command would ask the same again, and end again."""
    unread = Grader(unread="in Paris", status=status)
    assert judged(tmp_path / "verdicts.jsonl", unread, RIGHT, LONGER) == [1, 0]
    assert judged(tmp_path / "verdicts.jsonl", Grader(), RIGHT, LONGER) == [1, 1], "it is asked again"
    with pytest.raises(TrainingError, match="the judge failed 3 times"):  # one that reads nothing at all
        judged(tmp_path / "others.jsonl", Grader(failures=40, status=status), RIGHT)


def test_a_judge_that_keeps_failing_ends_the_run_and_scores_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the judge failed 3 times"):
        judged(tmp_path / "verdicts.jsonl", Grader(failures=40), RIGHT)
    assert (tmp_path / "verdicts.jsonl").read_text() == ""
