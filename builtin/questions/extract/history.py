"""Facts about states and events: when they began and ended."""

from __future__ import annotations

import re
from collections.abc import Iterator

from builtin.questions.extract.article import Article, search_name, spoken_name
from builtin.questions.extract.facts import Fact

_SPAN = re.compile(r"(?:^|\(|, )(?P<start>\d{3,4}) ?– ?(?P<end>\d{3,4})(?:\)?$| (?!BC|AD|CE))")
_POLITY = re.compile(
    r"\b(?:dynasty|empire|kingdom|caliphate|sultanate|khanate|khaganate|republic|state|commonwealth|shogunate|duchy)\b",
    re.IGNORECASE,
)
_EVENT = re.compile(
    r"\b(?:wars?|conflicts?|rebellion|revolution|revolt|uprising|campaign|famine|pandemic|expedition)\b",
    re.IGNORECASE,
)
_END_OF_POLITY = re.compile(r"\b(?:breakup|fall|end|history|partitions?) of\b", re.IGNORECASE)
_FOUNDED = re.compile(r"\b(?:founded|established|formed|launched|created) (?:in|on \w+ \w+,?) (?P<year>\d{4})\b")
_ORGANISATION = re.compile(
    r"\b(?:university|museum|newspaper|magazine|band|company|organi[sz]ation|school|club|union|manufacturer|website"
    r"|platform|institute|association|agency|alliance|group)\b",
    re.IGNORECASE,
)
_SEAT = re.compile(
    r"\b(?P<verb>headquartered|based|formed) in (?P<city>[A-Z][\w-]+(?: [A-Z][\w-]+){0,2})(?=[,.]| in \d{4}| and\b)"
)


def history_facts(article: Article, people: set[str]) -> Iterator[Fact]:
    """Years of a state or an event, from descriptions such as "Imperial dynasty of China (1368–1644)"."""
    if article.title in people:
        return
    span = _SPAN.search(article.description)
    kind = "event" if _EVENT.search(article.description) else "polity" if _POLITY.search(article.description) else ""
    if span is None or not kind or "c. " in article.description or _END_OF_POLITY.search(article.description):
        return
    for relation, year in (("start_year", span["start"]), ("end_year", span["end"])):
        yield Fact(kind, relation, article.title, spoken_name(article), search_name(article), year)


def organisation_facts(article: Article, people: set[str]) -> Iterator[Fact]:
    """The founding year of a university, band, company, …, from "founded in 1386"."""
    if article.title in people or not _ORGANISATION.search(article.description) or not article.title[0].isupper():
        return
    for match in _FOUNDED.finditer(article.served):
        yield Fact(
            "organisation", "founding_year", article.title, spoken_name(article), search_name(article), match["year"]
        )
    seat = _SEAT.search(article.served)
    if seat:
        role = "headquarters" if seat["verb"] == "headquartered" else "base" if seat["verb"] == "based" else "origin"
        yield Fact(
            "organisation", "city", article.title, spoken_name(article), search_name(article), seat["city"], role
        )


def is_dated_polity(article: Article, people: set[str]) -> bool:
    """Whether the article is about a state whose years are known."""
    return any(fact.kind == "polity" for fact in history_facts(article, people))
