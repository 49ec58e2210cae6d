"""Which episodes of a run to show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from apps.inspect.read import InspectedEpisode, RunEpisodes, Source
from research.episode.agent import StopReason
from research.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Filters:
    """Every condition must hold; None, False and () set no condition. `text` ignores case."""

    steps: tuple[int, ...] = ()
    evaluations: tuple[str, ...] = ()
    group: str | None = None
    stop: StopReason | None = None
    kind: str | None = None
    corrected: bool = False
    min_reward: float | None = None
    max_reward: float | None = None
    text: str | None = None
    questions: tuple[str, ...] = ()

    def select(self, run: RunEpisodes) -> Iterator[InspectedEpisode]:
        """The matching episodes: steps first, then evaluations, the newest of each first.

        With `questions`: question by question, in the given order, the oldest episode first (before, then after).

        Raises ConfigurationError that names the steps and evaluations of the run, or the question that it lacks.
        """
        if self.questions:
            yield from self._by_question(run)
            return
        for source in self._sources(run):
            yield from (episode for episode in run.read(source) if self._fits(episode))

    def _by_question(self, run: RunEpisodes) -> Iterator[InspectedEpisode]:
        found: dict[str, list[InspectedEpisode]] = {question: [] for question in self.questions}
        chosen = self._sources(run)
        for source in (source for source in run.sources() if source in chosen):
            for episode in run.read(source):
                if self._fits(episode):
                    for question in found:
                        if _asks(episode, question):
                            found[question].append(episode)
        if missing := [question for question, episodes in found.items() if not episodes]:
            raise ConfigurationError(f"no matching episode asks {missing[0]!r}; give a question's id or words from it")
        for episodes in found.values():
            yield from episodes

    def _sources(self, run: RunEpisodes) -> list[Source]:
        sources = run.sources()
        steps = [source for source in reversed(sources) if source.step is not None]
        evaluations = [source for source in reversed(sources) if source.evaluation is not None]
        if unknown := set(self.steps) - {source.step for source in steps}:
            there = f"it has {steps[-1].step} to {steps[0].step}" if steps else "it has none yet"
            raise ConfigurationError(f"the run has no episodes of step {min(unknown)}; {there}")
        if unknown_names := set(self.evaluations) - {source.evaluation for source in evaluations}:
            there = ", ".join(reversed([source.evaluation or "" for source in evaluations])) or "none yet"
            raise ConfigurationError(f"the run has no evaluation {min(unknown_names)!r}; it has {there}")
        if self.steps or self.evaluations:
            steps = [source for source in steps if source.step in self.steps]
            evaluations = [source for source in evaluations if source.evaluation in self.evaluations]
        return steps if self.group is not None else steps + evaluations

    def _fits(self, shown: InspectedEpisode) -> bool:
        return (
            (self.group is None or shown.group == self.group)
            and (self.stop is None or shown.episode.stop_reason is self.stop)
            and (self.kind is None or self.kind in (shown.kind, shown.question.kind))
            and (not self.corrected or shown.corrected > 0)
            and (self.min_reward is None or shown.score.reward >= self.min_reward)
            and (self.max_reward is None or shown.score.reward <= self.max_reward)
            and (self.text is None or _holds(shown, self.text.casefold()))
        )


def _asks(shown: InspectedEpisode, question: str) -> bool:
    return question == shown.question.id or question.casefold() in shown.question.text.casefold()


def _holds(shown: InspectedEpisode, text: str) -> bool:
    asked = [shown.question.text, *shown.question.answers]
    written = [part for turn in shown.episode.turns for part in (turn.text, turn.result)]
    return any(text in part.casefold() for part in asked + written)
