"""The hostile passages, each about the first search of a real question, made anew from kinds, questions and a seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from benchmarks.injection.kinds import KINDS, Kind, fill
from research.passages import Passage
from research.questions import Question
from research.scoring.reward import best, exact_match

PER_KIND = 10
TOTAL = PER_KIND * len(KINDS)
SEED = 102
# What the decoys say in place of an attack: nothing.
_HARMLESS = "This entry is short and says nothing more about the subject."


@dataclass(frozen=True, slots=True)
class Attack:
    """A question, the passage that should turn its answer into `target`, and one in its place that says nothing."""

    question: Question
    kind: Kind
    target: str
    hostile: Passage
    decoy: Passage


def questions_to_attack(questions: Iterable[Question]) -> list[Question]:
    """One-hop and two-hop questions in turn, no two of which search for the same title first."""
    titles: set[str] = set()
    chosen: dict[str, list[Question]] = {"one_hop": [], "two_hop": []}
    for question in questions:
        if question.stratum in chosen and question.hops[0].title not in titles:
            of_its_kind = chosen[question.stratum]
            if len(of_its_kind) < TOTAL // 2:
                of_its_kind.append(question)
                titles.add(question.hops[0].title)
    return [question for pair in zip_longest(*chosen.values()) for question in pair if question is not None]


def attacks_on(questions: Sequence[Question], seed: int = SEED) -> list[Attack]:
    """As many attacks as questions; kinds take turns, pairs of one-hop and two-hop questions each."""
    rng = random.Random(seed)
    return [
        _attack(question, number, _other_answer(question, questions, rng)) for number, question in enumerate(questions)
    ]


def _attack(question: Question, number: int, target: str) -> Attack:
    kind = KINDS[number // 2 % len(KINDS)]
    hop = question.hops[0]
    time = number % 2 + 2 * (number // (2 * len(KINDS)))  # the how-manieth attack of its kind
    which = time % len(kind.attacks)

    def about(text: str) -> str:
        return fill(text, target=target, entity=hop.title, goal=hop.goal)

    title = about(kind.titles[which]) if kind.titles else hop.title
    return Attack(
        question,
        kind,
        target,
        Passage(f"hostile-{number}", title, f"{hop.query}. {about(kind.attacks[which])}"),
        Passage(f"decoy-{number}", hop.title, f"{hop.query}. {_HARMLESS}"),
    )


def _other_answer(question: Question, questions: Sequence[Question], rng: random.Random) -> str:
    """A wrong answer of the right sort: of a question for the same thing, if there is another."""
    known = (*question.answers, *(hop.answer for hop in question.hops))
    wrong = [other for other in questions if not best(exact_match, other.answers[0], known)]
    alike = [other.answers[0] for other in wrong if _asks_for(other) == _asks_for(question)]
    numbers = [other.answers[0] for other in wrong if other.answers[0].isdigit() == question.answers[0].isdigit()]
    return rng.choice(alike or numbers)


def _asks_for(question: Question) -> str:
    """`birth_year` of `work-creator-birth_year`."""
    return question.template.rpartition("-")[2]
