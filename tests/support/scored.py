"""Groups of scored episodes with given rewards, built from real episodes and scores."""

from __future__ import annotations

from research.episode.agent import Episode, StopReason, Turn
from research.questions import Question
from research.scoring.reward import score
from services.trainer.entry import RolloutEntry
from services.trainer.groups import Group, Member

GOLD = "Paris"
ROLLOUT: RolloutEntry = {"refill_rounds": 0, "signal_before": 0.5, "signal_after": 0.5, "unusable": []}


def answered(text: str, *, searches: int = 0, stop_reason: StopReason = StopReason.ANSWERED) -> Episode:
    """An episode of `searches` searches that answers `text`, of three tokens, the middle one not sampled."""
    turns = [Turn(f"<think>t</think>\n<search>q{i}</search>", query=f"q{i}") for i in range(searches)]
    turns.append(Turn(f"<think>t</think>\n<answer>\\boxed{{{text}}}</answer>"))
    return Episode(
        question="Q?",
        prompt_ids=[1, 2],
        token_ids=[3, 4, 5],
        sampled=[True, False, True],
        logprobs=[-0.5, 0.0, -0.25],
        versions=["1", "", "1"],
        turns=turns,
        stop_reason=stop_reason,
    )


def member(episode: Episode, place: int = 0) -> Member:
    return Member(episode, score(episode.answer, (GOLD,), episode.format_fault), place)


def group(name: str, texts: list[str], kind: str = "one_hop", searches: int = 1) -> Group:
    question = Question(name, "Q?", (GOLD,), kind=kind)
    return Group(name, question, [member(answered(text, searches=searches), place) for place, text in enumerate(texts)])
