"""Facts about places: the country of a city, the province of a capital, the neighbours of a country."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from research.questions.builtin.article import Article, spoken_name
from research.questions.builtin.facts import Fact

_COUNTRY = re.compile(
    r"^(?:[\w-]+ ){0,2}country (?:in|on|of|at|off|within|between|primarily|mostly|comprising)\b",
    re.IGNORECASE,
)
_OFFICIAL_NAME = re.compile(
    r"\bofficially (?:known as |as )?the (?P<name>[A-Z][\w'’-]*(?: (?:of |the |and )*[A-Z][\w'’-]*)+)"
)
_CAPITAL = re.compile(
    r"^(?:Federal |National )?capital(?: city)?(?:,? and (?:the )?(?:largest|most populous|chief)(?: city| port)?)?"
    r" (?:of|in) (?:the )?(?P<where>[A-Z].*)$",
    re.IGNORECASE,
)
_CITY = re.compile(
    r"^[^.]*?\b(?:city|town|municipality|metropolis|megacity|port)\b[^,]*? (?:in|of) (?P<where>[^.]*)$",
    re.IGNORECASE,
)
_FEATURE = re.compile(
    r"^[^.]*?\b(?:river|lake|mountain|volcano|temple|palace|fort|fortress|monument|castle|waterfall|canal|mosque"
    r"|cathedral|desert|peninsula|plateau|bridge|museum|university|stadium|tower)\b[^,]*? (?:in|of) (?P<where>[^.]*)$",
    re.IGNORECASE,
)
_DIRECTION = r"(?:north|south)?(?:east|west)|north|south"
_ENDS_IN_ANOTHER_NAME = re.compile(r"[A-Z][\w'’-]*,? (?:and )?(?:the )?$")
_COUNTRY_ALIASES = {
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
_SPELLINGS_OF_COUNTRIES = {"U.S.": "United States", "US": "United States", "Ireland": "Republic of Ireland"}


def is_country(article: Article) -> bool:
    """Whether the description says "Country in …"."""
    return bool(_COUNTRY.match(article.description))


def country_aliases(name: str) -> tuple[str, ...]:
    """Other common names of a country."""
    return _COUNTRY_ALIASES.get(name, ())


def place_facts(article: Article, countries: set[str]) -> Iterator[Fact]:
    """The country of a capital, city or landmark, and the province of a provincial capital."""
    capital = _CAPITAL.match(article.description)
    if capital:
        province, country = _split_where(capital["where"], countries)
        if country and not province:
            yield _located(article, "capital", country)
        elif country:
            yield _located(article, "city", country)
            yield Fact("capital", "province", article.title, article.name, article.name, province)
        return
    for kind, pattern in (("city", _CITY), ("place", _FEATURE)):
        match = pattern.match(article.description)
        if match:
            _, country = _split_where(match["where"], countries)
            if country:
                yield _located(article, kind, country)
            return


def country_facts(article: Article, countries: set[str]) -> Iterator[Fact]:
    """The official name of a country, and the one that borders it in a direction ("bordered by Togo to the west")."""
    if not is_country(article):
        return
    phrase = spoken_name(article)
    official = _OFFICIAL_NAME.search(article.served)
    # Anybody would guess "Republic of Malawi" without a search.
    if official and not re.fullmatch(rf"Republic of (?:the )?{re.escape(article.name)}", official["name"]):
        yield Fact("country", "official_name", article.title, phrase, article.name, official["name"])
    for match in _border_pattern(frozenset(countries)).finditer(article.served):
        name, direction = match["name"], match["direction"]
        named_once = len(re.findall(rf"(?<![\w-]){direction}(?![\w-])", article.full)) == 1
        if named_once and not _ENDS_IN_ANOTHER_NAME.search(article.served[: match.start()]):
            relation = "neighbour" if name in countries else "sea"
            aliases = country_aliases(name)
            yield Fact("country", relation, article.title, phrase, article.name, name, direction, aliases)


@cache
def _border_pattern(countries: frozenset[str]) -> re.Pattern[str]:
    names = "|".join(sorted(map(re.escape, countries), key=len, reverse=True))
    return re.compile(
        rf"(?<![\w-])(?P<name>(?:[A-Z]\w+ )?[A-Z]\w+ (?:Sea|Ocean)|{names})"
        rf" (?:to|in|on) (?:the|its) (?P<direction>{_DIRECTION})(?![\w-])(?! and (?:{_DIRECTION})\b)"
    )


def _split_where(where: str, countries: set[str]) -> tuple[str, str]:
    """ "Khuzestan province, Iran" → ("Khuzestan", "Iran"); ("", "") where the country is not known."""
    *regions, country = [part.strip() for part in where.split(",")]
    country = re.sub(r"^(?:the |(?:north|south|east|west|centr)[a-z]*(?:ern|al) )", "", country)
    if country not in countries and country not in _SPELLINGS_OF_COUNTRIES:
        return "", ""
    region = ", ".join(regions).removeprefix("the ")
    return re.sub(r" (?:[Pp]rovince|[Ss]tate)$", "", region), country


def _located(article: Article, kind: str, country: str) -> Fact:
    proper = _SPELLINGS_OF_COUNTRIES.get(country, country)
    aliases = tuple(name for name in (proper, *country_aliases(proper)) if name != country)
    phrase = spoken_name(article) if kind == "place" else article.name
    return Fact(kind, "country", article.title, phrase, article.name, country, aliases=aliases)
