"""From facts to questions: a fact is a one-hop question, facts that meet in an article make a chain."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from builtin.questions.extract.aliases import with_aliases
from builtin.questions.extract.article import without_accents
from builtin.questions.extract.facts import DIRECTED, Fact
from builtin.questions.phrases import wording_of
from builtin.questions.split import stable_hash
from research.questions.model import Hop, Question

_LIFE = ("birth_year", "death_year", "middle_name", "nationality", "other_name")
_OF_COUNTRIES = ("neighbour", "sea", "official_name", "region", "capital", "leader")
_OF_CITIES = ("river", "population", "province", "other_name")
_YEARS = ("start_year", "end_year")
_NEXT_RELATIONS = {
    ("work", "creator"): _LIFE,
    ("idea", "originator"): _LIFE,
    ("capital", "country"): ("neighbour", "sea", "official_name", "region", "leader"),
    ("city", "country"): _OF_COUNTRIES,
    ("place", "country"): _OF_COUNTRIES,
    ("place", "city"): _OF_CITIES,
    ("organisation", "city"): ("country", *_OF_CITIES),
    ("country", "neighbour"): ("neighbour", "official_name", "region", "capital", "leader", "sea"),
    ("person", "country"): ("neighbour", "sea", "region", "capital"),
    ("person", "nationality"): ("neighbour", "official_name", "region", "capital"),
    ("person", "realm"): _YEARS,
    ("person", "polity"): _YEARS,
    ("person", "relative"): (*_LIFE, "reign_start", "reign_end"),
    ("taxon", "family"): ("order", "species_count"),
    ("taxon", "order"): ("species_count",),
    ("taxon", "genus"): ("family", "species_count"),
}
_KIND_OF_LENGTH = {1: "one_hop", 2: "two_hop", 3: "three_hop"}
# At most this many leaders of one country end the chains that begin in one place.
_MOST_LEADERS = 1


def one_hop_questions(facts: Iterable[Fact]) -> Iterator[Question]:
    """One question per fact."""
    for fact in facts:
        yield _question([fact])


def chain_questions(facts: Sequence[Fact], titles: Mapping[str, str]) -> Iterator[Question]:
    """Two-hop and three-hop questions: each answer but the last names the subject of the next fact.

    `titles` maps names, as answers write them, to the title of the article about them.
    """
    by_subject: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_subject[fact.subject].append(fact)
    for first in facts:
        for second in _next(first, by_subject, titles):
            yield _question([first, second])
            for third in _next(second, by_subject, titles):
                yield _question([first, second, third])


def hop_of(fact: Fact, phrase: str, search: str) -> Hop:
    """The search for a fact whose subject is referred to as `phrase` and searched for as `search`."""
    wording = wording_of(fact)
    return Hop(
        query=_fill(wording.query, fact, search),
        goal=_fill(wording.goal, fact, phrase),
        title=fact.title,
        answer=fact.answer,
        beside={"neighbour": fact.role, "sea": fact.role, "species_count": "species"}.get(fact.relation, ""),
    )


def sentence(text: str) -> str:
    """The text with its first letter capitalized."""
    return text[0].upper() + text[1:]


def choose(phrases: Sequence[str], identity: str) -> str:
    """One of the phrases, chosen by a hash of the question's identity."""
    return phrases[stable_hash(identity) % len(phrases)]


def slug(text: str) -> str:
    """ "The Starry Night" → "the-starry-night"."""
    return re.sub(r"[^a-z0-9]+", "-", without_accents(text).lower()).strip("-")


def _next(fact: Fact, by_subject: Mapping[str, Sequence[Fact]], titles: Mapping[str, str]) -> Iterator[Fact]:
    names = (fact.leads_to,) if fact.leads_to else (fact.answer, *fact.aliases)
    bridge = next((titles[name] for name in names if name in titles), None)
    if bridge is None or bridge == fact.subject:
        return
    wanted = _NEXT_RELATIONS.get((fact.kind, fact.relation), ())
    leaders = 0
    for following in sorted(by_subject[bridge], key=lambda one: stable_hash(f"{fact.subject}/{one.role}/{one.answer}")):
        if following.relation in wanted:
            leaders += following.relation == "leader"
            if following.relation != "leader" or leaders <= _MOST_LEADERS:
                yield following


def _question(chain: Sequence[Fact]) -> Question:
    first, last = chain[0], chain[-1]
    template = "-".join((first.kind, *(fact.relation for fact in chain)))
    directions = [slug(fact.role) for fact in chain if fact.relation in DIRECTED]
    identity = "/".join((template, "-".join((slug(first.subject), *directions))))
    reference = first.phrase
    hops = [hop_of(first, first.phrase, first.search)]
    for number, (before, fact) in enumerate(pairwise(chain), start=1):
        reference = _fill(choose(wording_of(before).refers, f"{identity}/refer{number}"), before, reference)
        hops.append(hop_of(fact, _as_spoken(_found(before), fact), _found(before)))
    return Question(
        id=identity,
        text=sentence(_fill(choose(wording_of(last).asks, identity), last, reference)),
        answers=with_aliases((last.answer, *last.aliases)),
        kind=_KIND_OF_LENGTH[len(chain)],
        template=template,
        hops=tuple(hops),
    )


def _found(fact: Fact) -> str:
    return fact.leads_to or fact.answer


def _as_spoken(name: str, fact: Fact) -> str:
    """The name that the last hop found, with the article that its own phrase has: "the Netherlands"."""
    return f"the {name}" if fact.kind in {"polity", "country"} and fact.phrase.startswith("the ") else name


def _fill(pattern: str, fact: Fact, subject: str) -> str:
    return pattern.format(s=subject, role=fact.role)
