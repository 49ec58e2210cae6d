"""A group: the scored episodes of one question, which GRPO compares with each other."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from research.episode.agent import Episode
from research.questions import Question
from research.scoring.reward import Score


@dataclass(frozen=True, slots=True)
class Member:
    """One scored episode of a group; `place` is its number among the samples of its question, failed ones included."""

    episode: Episode
    score: Score
    place: int

    @property
    def root(self) -> int:
        """The place of the member that it branched from, or its own."""
        return self.place if self.episode.branched_from is None else self.episode.branched_from.member


@dataclass(frozen=True, slots=True)
class TrainingUse:
    """How training used one episode.

    Attributes:
        reward: the basis of its advantage; in the ablation `shuffled_rewards` not the reward that it earned.
        advantage: None if its group has none.
        skip_reason: why it was not trained on; None if it was.
        turn_advantages: what the tokens of each turn got beside it; None for a turn that is masked. None if turns are
            not credited or masked, and in runs from before 2026-12.
    """

    reward: float
    advantage: float | None
    skip_reason: str | None
    turn_advantages: list[float | None] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one drawn question; `id` identifies the draw, not the text."""

    id: str
    question: Question
    members: list[Member]

    @property
    def rewards(self) -> list[float]:
        return [member.score.reward for member in self.members]

    @property
    def success(self) -> float:
        """Share of the episodes with an exact match."""
        return fmean(member.score.em for member in self.members)
