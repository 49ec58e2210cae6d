"""Reads the episodes of a run one by one, with everything that is worth showing about each."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from research.config import recorded_settings
from research.episode.agent import Episode
from research.episode.search_analysis import SearchFact, search_facts
from research.episode.serialization import episode_from_dict
from research.errors import AssetError, ProtocolError
from research.questions import Question, question_from_dict
from research.scoring.reward import Score
from services.trainer.groups import TrainingUse
from services.trainer.run_dir.run_dir import FORMER_EVALUATIONS

OutcomeName = Literal["exact", "partial", "wrong", "format"]


@dataclass(frozen=True, slots=True)
class Source:
    """A file of episodes: those of a training step, or of an evaluation; exactly one of the two is not None."""

    path: Path
    step: int | None = None
    evaluation: str | None = None

    @property
    def name(self) -> str:
        return f"evaluation {self.evaluation}" if self.step is None else f"step {self.step}"


@dataclass(frozen=True, slots=True)
class InspectedEpisode:
    """An episode with its score and where it comes from; `position` counts from 0 within its group, or evaluation."""

    source: Source
    group: str | None
    position: int
    question: Question
    episode: Episode
    score: Score
    fault: str | None
    facts: list[SearchFact]
    training: TrainingUse | None  # None for evaluations
    rewards: tuple[float, ...]  # of its group; the advantages were computed from them

    @property
    def kind(self) -> str:
        """As in evaluations: questions with a template that no training question has are a kind of their own."""
        return self.question.stratum

    @property
    def corrected(self) -> int:
        return sum(fact.corrects for fact in self.facts)

    @property
    def outcome(self) -> OutcomeName:
        if self.fault is not None:
            return "format"
        if self.score.f1 > 0:
            return "exact" if self.score.em else "partial"
        return "wrong"

    @property
    def reward_in_words(self) -> str:
        words = self.score.reason
        if self.fault is not None and self.score.f1 > 0:
            words += f" (so the answer, F1 {self.score.f1:.2f}, does not count)"
        return words

    @property
    def training_in_words(self) -> str | None:
        """None for evaluations, and for runs that did not record it."""
        if self.training is None:
            return None
        line = "none" if self.training.advantage is None else f"{self.training.advantage:+.2f}"
        if self.training.reward != self.score.reward:
            line += f" (ablation: it was given the reward {self.training.reward:.2f})"
        if self.training.turn_advantages is not None:
            turns = ("masked" if own is None else f"{own:+.2f}" for own in self.training.turn_advantages)
            line += f" (turns beside it: {', '.join(turns)})"
        skip_reason = self.training.skip_reason
        return f"{line}, trained on" if skip_reason is None else f"{line}, not trained: {skip_reason}"

    @property
    def branch_in_words(self) -> str | None:
        """What the episode copied from another of its group; None if it began with the prompt."""
        point = self.episode.branched_from
        if point is None:
            return None
        return f"branch of sample {point.member + 1} after search {point.turn + 1}, {point.tokens} tokens copied"

    @property
    def last_result_unseen(self) -> bool:
        """Whether the last result did not fit the context, so that it is in the record but not among the tokens."""
        return bool(self.episode.turns) and self.episode.turns[-1].query is not None


@dataclass(frozen=True, slots=True)
class _Record:
    """One line of a file of episodes."""

    group: str | None
    scored: tuple[Question, Score, Episode]
    training: TrainingUse | None


@dataclass(slots=True)
class RunEpisodes:
    """The episodes of a run directory. `problems` fills while files are read."""

    directory: Path
    problems: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """The recorded settings of the run, from any version of this project; {} if none can be read."""
        try:
            return recorded_settings(self.directory) or {}
        except AssetError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return {}

    def sources(self) -> list[Source]:
        """Steps in order, then evaluations in the order in which they were made."""
        steps = sorted(self.directory.glob("episodes/step-*.jsonl.gz"))
        evaluations = sorted(self.directory.glob("evaluations/*.jsonl.gz"), key=lambda path: path.stat().st_mtime)
        present = {former: name for name, former in FORMER_EVALUATIONS.items()}
        numbered = ((path, _stem(path).removeprefix("step-")) for path in steps)
        return [Source(path, step=int(number)) for path, number in numbered if number.isdecimal()] + [
            Source(path, evaluation=present.get(_stem(path), _stem(path))) for path in evaluations
        ]

    def read(self, source: Source) -> Iterator[InspectedEpisode]:
        """The episodes of one file; a truncated file is read as far as possible and named in `problems`.

        Raises AssetError that names the file and line of a record that is not an episode.
        """
        records = self._records(source.path)
        if source.step is None:
            yield from (
                _inspected(source, None, index, *record.scored, None, ()) for index, record in enumerate(records)
            )
            return
        for group, members in groupby(records, key=lambda record: record.group):
            own = list(members)
            rewards = tuple(member.training.reward for member in own if member.training)
            for position, member in enumerate(own):
                yield _inspected(source, group, position, *member.scored, member.training, rewards)

    def _records(self, path: Path) -> Iterator[_Record]:
        read = 0
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    record = _record(json.loads(line))
                    read += 1
                    yield record
        except (EOFError, OSError, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
            self.problems.append(f"{path.name} cannot be read beyond line {read} ({error})")
        except (KeyError, TypeError, ProtocolError) as error:
            raise AssetError(f"{path}:{read + 1}: not an episode of this project ({error!r})") from error


def find_run(name: str, runs: Path) -> RunEpisodes:
    """The run `name` under `runs`, or the run directory with that path.

    Raises AssetError that names the runs that exist, or says that the run has no episodes yet.
    """
    directory = runs / name if (runs / name).is_dir() else Path(name).expanduser()
    run = RunEpisodes(directory)
    if run.sources():
        return run
    known = [
        str(path.relative_to(runs)) if path.is_relative_to(runs) else str(path)
        for path in _runs_in(directory) or _runs_in(runs)
    ]
    there = f"those with episodes are: {', '.join(known)}" if known else "no run there has episodes yet"
    if directory.is_dir():
        raise AssetError(f"{directory} has no episodes, which a run writes after each step and evaluation; {there}")
    raise AssetError(f"there is no run {name!r} in {runs}, nor a directory of that name; {there}")


def _runs_in(directory: Path) -> list[Path]:
    """Runs that have episodes, including those in the directory of a study."""
    inside = sorted([*directory.glob("*/"), *directory.glob("*/*/")])
    return [path for path in inside if RunEpisodes(path).sources()]


def _record(line: dict[str, Any]) -> _Record:
    scored = question_from_dict(line["question"]), Score(**line["score"]), episode_from_dict(line["episode"])
    # Runs from before 2026-11 do not record what was trained on.
    training = TrainingUse(**line["training"]) if "training" in line else None
    return _Record(line.get("group"), scored, training)


def _inspected(
    source: Source,
    group: str | None,
    position: int,
    question: Question,
    score: Score,
    episode: Episode,
    training: TrainingUse | None,
    rewards: tuple[float, ...],
) -> InspectedEpisode:
    facts = search_facts(episode, question)
    fault = episode.format_fault
    return InspectedEpisode(source, group, position, question, episode, score, fault, facts, training, rewards)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".jsonl.gz")
