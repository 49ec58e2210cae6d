"""Facts about countries: official name, region, neighbors; and, from other articles, capital and leaders."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache

from builtin.questions.extract.article import Article, spoken_name
from builtin.questions.extract.facts import Fact

_COUNTRY = re.compile(
    r"^(?:[\w-]+ ){0,2}country (?:in|on|of|at|off|within|between|primarily|mostly|comprising)\b",
    re.IGNORECASE,
)
_OFFICIAL_NAME = re.compile(
    r"\bofficially (?:known as |as )?the (?P<name>[A-Z][\w'’-]*(?: (?:of |the |and )*[A-Z][\w'’-]*)+)"
)
_REGION = re.compile(
    r"^Country in (?:the )?(?P<region>(?:\w+ )?(?:Africa|Asia|Europe|America|Oceania|Caribbean|Balkans|Caucasus))$"
)
# A lead that names one of these gives a second right answer to "which part of the world".
_SECOND_REGION = re.compile(r"\b(?:Maghreb|Levant|Horn of Africa|Baltic|Sahel|Nordic)\b")
_REGION_ALIASES = {"West": "Western", "East": "Eastern", "North": "Northern", "Southeast": "Southeastern"}
_DIRECTION = r"(?:north|south)?(?:east|west)|north|south"
_ENDS_IN_ANOTHER_NAME = re.compile(r"[A-Z][\w'’-]*,? (?:and )?(?:the )?$")
_ALIASES = {
    "United States": ("US", "USA", "United States of America", "U.S."),
    "United Kingdom": ("UK", "Great Britain", "Britain"),
    "Czech Republic": ("Czechia",),
    "Democratic Republic of the Congo": ("DR Congo", "DRC"),
    "Ivory Coast": ("Côte d'Ivoire",),
    "Myanmar": ("Burma",),
    "Turkey": ("Türkiye",),
    "Eswatini": ("Swaziland",),
    "United Arab Emirates": ("UAE",),
    "Bosnia and Herzegovina": ("Bosnia",),
    "Netherlands": ("Holland",),
    "China": ("People's Republic of China", "PRC"),
    "North Macedonia": ("Macedonia",),
    "Republic of Ireland": ("Ireland",),
    **dict.fromkeys(("England", "Scotland", "Wales"), ("United Kingdom", "UK")),
    "Russia": ("Russian Federation",),
}
_SPELLINGS = {"U.S.": "United States", "US": "United States", "Ireland": "Republic of Ireland"}


def is_country(article: Article) -> bool:
    """Whether the description says "Country in …"."""
    return bool(_COUNTRY.match(article.description))


def proper_name(country: str) -> str:
    """The name that the country's own article has: "United States" for "US"."""
    return _SPELLINGS.get(country, country)


def other_names(country: str) -> tuple[str, ...]:
    """Other common names of a country, the proper one first if `country` is another."""
    proper = proper_name(country)
    return tuple(name for name in (proper, *_ALIASES.get(proper, ())) if name != country)


def country_facts(article: Article, countries: Collection[str]) -> Iterator[Fact]:
    """Official name, part of the world, and what borders it in a direction ("bordered by Togo to the west")."""
    if not is_country(article):
        return
    phrase = spoken_name(article)
    region = _REGION.match(article.description)
    if region and not _SECOND_REGION.search(article.full):
        yield Fact(
            "country",
            "region",
            article.title,
            phrase,
            article.name,
            region["region"],
            aliases=_regions(region["region"]),
        )
    official = _OFFICIAL_NAME.search(article.served)
    # "Republic of Malawi" can be guessed without a search.
    if official and not re.fullmatch(rf"Republic of (?:the )?{re.escape(article.name)}", official["name"]):
        yield Fact("country", "official_name", article.title, phrase, article.name, official["name"])
    for match in _border_pattern(frozenset(countries)).finditer(article.served):
        name, direction = match["name"], match["direction"]
        direction = direction or match["direction_before"]
        name = name or match["name_after"]
        named_once = len(re.findall(rf"(?<![\w-]){direction}(?![\w-])", article.full)) == 1
        if named_once and not _ENDS_IN_ANOTHER_NAME.search(article.served[: match.start()]):
            relation = "neighbour" if name in countries else "sea"
            yield Fact("country", relation, article.title, phrase, article.name, name, direction, other_names(name))


def facts_told_elsewhere(facts: Collection[Fact], countries: Mapping[str, Article]) -> Iterator[Fact]:
    """Turn "Oslo is the capital of Norway" and "Moon was President of South Korea" into facts about the country.

    `countries` maps names to the article of the country.
    """
    terms = {(fact.subject, fact.relation): fact.answer for fact in facts if fact.kind == "person"}
    for fact in facts:
        country = countries.get(proper_name(fact.answer)) if fact.relation == "country" else None
        if country is None:
            continue
        name = re.sub(r" \([^)]*\)$", "", fact.subject)
        if fact.kind == "capital":
            yield _told(country, "capital", name, fact.subject)
        start, end = (terms.get((fact.subject, f"reign_{edge}")) for edge in ("start", "end"))
        if fact.kind == "person" and start and end:
            yield _told(country, "leader", name, fact.subject, f"from {start} to {end} was {fact.role}")


def _told(country: Article, relation: str, answer: str, read_in: str, role: str = "") -> Fact:
    phrase = spoken_name(country)
    return Fact("country", relation, country.title, phrase, country.name, answer, role, read_in=read_in)


def _regions(region: str) -> tuple[str, ...]:
    """ "West Asia" is "Western Asia"; but South America is not Southern America."""
    where, _, continent = region.partition(" ")
    return (f"{_REGION_ALIASES[where]} {continent}",) if where in _REGION_ALIASES and continent != "America" else ()


@cache
def _border_pattern(countries: frozenset[str]) -> re.Pattern[str]:
    names = "|".join(sorted(map(re.escape, countries), key=len, reverse=True))
    neighbour = rf"(?:[A-Z]\w+ )?[A-Z]\w+ (?:Sea|Ocean)|{names}"
    return re.compile(
        rf"(?<![\w-])(?P<name>{neighbour})"
        rf" (?:to|in|on) (?:the|its) (?P<direction>{_DIRECTION})(?![\w-])(?! and (?:{_DIRECTION})\b)"
        rf"|\bto the (?P<direction_before>{_DIRECTION}) by (?:the )?(?P<name_after>{neighbour})"
        r"(?=[,.;](?! [A-Z])| and to the\b)"
    )
