"""From facts to questions: a fact is a one-hop question, two facts that meet in an article a two-hop question."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from research.questions.builtin.article import without_accents
from research.questions.builtin.facts import DIRECTED, Fact
from research.questions.builtin.phrases import wording_of
from research.questions.builtin.split import stable_hash
from research.questions.model import Hop, Question

_LIFE = ("birth_year", "death_year", "middle_name", "nationality")
_OF_COUNTRIES = ("neighbour", "sea", "official_name")
_YEARS = ("start_year", "end_year")
_SECOND_RELATIONS = {
    ("work", "creator"): _LIFE,
    ("idea", "originator"): _LIFE,
    ("capital", "country"): _OF_COUNTRIES,
    ("city", "country"): _OF_COUNTRIES,
    ("place", "country"): _OF_COUNTRIES,
    ("person", "country"): ("neighbour", "sea"),
    ("person", "realm"): _YEARS,
    ("person", "polity"): _YEARS,
    ("person", "relative"): (*_LIFE, "reign_start", "reign_end"),
    ("taxon", "family"): ("order", "species_count"),
    ("taxon", "order"): ("species_count",),
    ("taxon", "genus"): ("family", "species_count"),
}


def one_hop_questions(facts: Iterable[Fact]) -> Iterator[Question]:
    """One question a fact."""
    for fact in facts:
        template = f"{fact.kind}-{fact.relation}"
        identity = _identity(template, fact)
        asks = wording_of(fact).asks
        yield Question(
            id=identity,
            text=_sentence(_fill(_choose(asks, identity), fact, fact.phrase)),
            answers=_answers(fact),
            kind="one_hop",
            template=template,
            hops=(_hop(fact, fact.phrase, fact.search),),
        )


def two_hop_questions(facts: Sequence[Fact], titles: Mapping[str, str]) -> Iterator[Question]:
    """One question for each pair of facts where the answer of the first names the subject of the second.

    `titles` maps names, as answers write them, to the title of the article about them.
    """
    by_subject: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_subject[fact.subject].append(fact)
    for first in facts:
        bridge = titles.get(first.answer)
        for second in by_subject[bridge] if bridge and bridge != first.subject else ():
            if second.relation in _SECOND_RELATIONS.get((first.kind, first.relation), ()):
                yield _chain(first, second)


def _chain(first: Fact, second: Fact) -> Question:
    template = f"{first.kind}-{first.relation}-{second.relation}"
    identity = _identity(template, replace(second, subject=first.subject))
    reference = _fill(_choose(wording_of(first).refers, identity + "/refer"), first, first.phrase)
    bridge = first.answer if second.kind != "polity" or not second.phrase.startswith("the ") else f"the {first.answer}"
    return Question(
        id=identity,
        text=_sentence(_fill(_choose(wording_of(second).asks, identity), second, reference)),
        answers=_answers(second),
        kind="two_hop",
        template=template,
        hops=(_hop(first, first.phrase, first.search), _hop(second, bridge, first.answer)),
    )


def _hop(fact: Fact, phrase: str, search: str) -> Hop:
    wording = wording_of(fact)
    return Hop(
        query=_fill(wording.query, fact, search),
        goal=_fill(wording.goal, fact, phrase),
        title=fact.subject,
        answer=fact.answer,
    )


def _fill(pattern: str, fact: Fact, subject: str) -> str:
    return pattern.format(s=subject, role=fact.role)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _choose(phrases: Sequence[str], identity: str) -> str:
    return phrases[stable_hash(identity) % len(phrases)]


def _answers(fact: Fact) -> tuple[str, ...]:
    """The answer, its aliases, and all of them without accents."""
    answers = (fact.answer, *fact.aliases)
    return tuple(dict.fromkeys((*answers, *map(without_accents, answers))))


def _identity(template: str, fact: Fact) -> str:
    """A readable id such as "work-creator-birth_year/the-starry-night"."""
    slug = re.sub(r"[^a-z0-9]+", "-", without_accents(fact.subject).lower()).strip("-")
    direction = f"-{fact.role}" if fact.relation in DIRECTED else ""
    return f"{template}/{slug}{direction}"
