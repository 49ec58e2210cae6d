"""Every fact that the extractors find in a corpus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from builtin.questions.extract.article import Article
from builtin.questions.extract.countries import country_facts, facts_told_elsewhere, is_country
from builtin.questions.extract.facts import Fact, unambiguous
from builtin.questions.extract.history import history_facts, is_dated_polity, organisation_facts
from builtin.questions.extract.nature import family_name, nature_facts
from builtin.questions.extract.other_names import other_name_facts
from builtin.questions.extract.people import is_person, person_facts, polity_facts, relative_facts
from builtin.questions.extract.places import is_city, place_facts
from builtin.questions.extract.works import idea_facts, work_facts


def facts_of(articles: Sequence[Article], titles: Mapping[str, str]) -> list[Fact]:
    """All facts with exactly one answer; other names that a lead gives the answer are among its aliases.

    `titles` maps names, as answers write them, to the title of the article about them.
    """
    told = list(_told(articles))
    countries = {article.name: article for article in articles if is_country(article)}
    facts = unambiguous((*told, *facts_told_elsewhere(told, countries)))
    other_names = {fact.subject: fact.answer for fact in facts if fact.relation == "other_name"}
    return [
        replace(fact, aliases=(*fact.aliases, other_names[titles[fact.answer]]))
        if titles.get(fact.answer) in other_names
        else fact
        for fact in facts
    ]


def titles_by_name(articles: Sequence[Article]) -> dict[str, str]:
    """Titles by every name that means one article only: the title, the name, a family's scientific name."""
    titles: dict[str, set[str]] = defaultdict(set)
    for article in articles:
        for name in {article.title, article.name, family_name(article)} - {None}:
            titles[str(name)].add(article.title)
    return {name: next(iter(found)) for name, found in titles.items() if len(found) == 1}


def _told(articles: Sequence[Article]) -> Iterator[Fact]:
    people = {article.title for article in articles if is_person(article)}
    countries = {article.name for article in articles if is_country(article)}
    cities = {article.name for article in articles if is_city(article)}
    polities = {article.title for article in articles if is_dated_polity(article, people)}
    for article in articles:
        made = [*work_facts(article)]
        yield from made or idea_facts(article, people)
        yield from person_facts(article)
        yield from polity_facts(article, polities)
        yield from relative_facts(article, people)
        yield from place_facts(article, countries, cities)
        yield from country_facts(article, countries)
        yield from history_facts(article, people)
        yield from organisation_facts(article, people)
        yield from nature_facts(article)
        yield from other_name_facts(article)
