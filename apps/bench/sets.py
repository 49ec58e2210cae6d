"""The question sets that a bench asks, under the names of their directories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from research.errors import ConfigurationError
from research.questions import Question
from research.questions.benchmarks import benchmark_of, set_name
from research.questions.sampling import first_of_each_kind
from research.questions.sources import load_questions
from research.settings import Settings


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions under one name; `warning` says why the figures do not compare with the paper's, if so."""

    name: str
    questions: list[Question]
    warning: str | None


def question_sets(settings: Settings) -> list[QuestionSet]:
    """The sets that the settings name.

    Raises:
        AssetError: a set is missing or corrupt.
        ConfigurationError: two sets would have the same name, or no set has a kind that `bench.per_kind` names.
    """
    sources = settings.bench.questions or [settings.questions.held_out]
    loaded = {source: load_questions(source, "held_out", settings.paths.data) for source in sources}
    counts = settings.bench.per_kind
    kinds = {question.stratum for questions in loaded.values() for question in questions}
    if isinstance(counts, Mapping) and (unknown := sorted(set(counts) - kinds)):
        raise ConfigurationError(
            f"bench.per_kind: no question is of kind {', '.join(unknown)}; there are: {', '.join(sorted(kinds))}"
        )
    sets = []
    for source, questions in loaded.items():
        benchmark = benchmark_of(source, questions)
        chosen = _some_of_each_kind(questions, counts)
        warning = benchmark.warning(len(chosen)) if benchmark else None
        sets.append(QuestionSet(set_name(source, benchmark), chosen, warning))
    names = [each.name for each in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"bench.questions: two sets would be called {', '.join(twice)}; rename a file")
    return sets


def _some_of_each_kind(questions: list[Question], counts: int | Mapping[str, int] | None) -> list[Question]:
    if counts is None:
        return questions
    if isinstance(counts, Mapping):
        present = {question.stratum for question in questions}
        counts = {kind: count for kind, count in counts.items() if kind in present}
    return first_of_each_kind(questions, counts)
