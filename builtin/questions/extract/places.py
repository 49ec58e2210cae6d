"""Facts about places: the country, province, river and population of a city, the city and country of a landmark."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from builtin.questions.extract.article import Article, spoken_name
from builtin.questions.extract.countries import is_country, other_names, proper_name
from builtin.questions.extract.facts import Fact

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
    r"^[^.]*?\b(?:river|lake|mountain|volcano|stratovolcano|temple|palace|fort|fortress|monument|castle|waterfall"
    r"|waterfalls|canal|mosque|cathedral|church|desert|peninsula|plateau|bridge|museum|gallery|university|stadium|tower"
    r"|state|province|region|island|archipelago|department|district|valley|park|site|complex|statue|building"
    r"|skyscraper|garden|school|institute|opera house|ruins|citadel|mountain range|strait|gulf|territory)\b"
    r"[^,]*? (?:in|of) (?P<where>[^.]*)$",
    re.IGNORECASE,
)
_RIVER = re.compile(
    r"\b(?:on|along) the (?:(?:left|right|north|south|east|west|\w+ern) )?"
    r"(?:(?:banks?|shores?) of the )?(?P<river>River [A-Z]\w+|[A-Z]\w+ River)\b"
    r"|\bbanks? of the (?P<short>[A-Z]\w+)(?=[,.]| (?:in|and|at|near)\b)"
)
_POPULATION = re.compile(
    r"\bpopulation of (?:about |over |more than |approximately |around |nearly |some |roughly |an estimated )*"
    r"(?P<number>\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)? million)\b"
)


def place_facts(article: Article, countries: Collection[str], cities: Collection[str]) -> Iterator[Fact]:
    """The country of a capital, city or landmark, the province of a capital, the city of a landmark.

    `countries` and `cities` are the known names.
    """
    if is_country(article):
        return
    capital = _CAPITAL.match(article.description)
    if capital:
        province, country = _split_where(capital["where"], countries)
        if country and not province:
            yield _located(article, "capital", country)
        elif country:
            yield _located(article, "city", country)
            yield Fact("capital", "province", article.title, article.name, article.name, province)
        yield from _city_facts(article)
        return
    for kind, pattern in (("city", _CITY), ("place", _FEATURE)):
        described = pattern.match(article.description)
        if described:
            region, country = _split_where(described["where"], countries)
            if country:
                yield _located(article, kind, country)
            if kind == "city":
                yield from _city_facts(article)
                if country and region:
                    yield Fact("city", "province", article.title, article.name, article.name, region)
            elif region in cities:
                yield Fact("place", "city", article.title, spoken_name(article), article.name, region)
            return


def is_city(article: Article) -> bool:
    """Whether the description is that of a city or a capital."""
    return bool(_CAPITAL.match(article.description) or _CITY.match(article.description))


def _city_facts(article: Article) -> Iterator[Fact]:
    for course in _RIVER.finditer(article.served):
        river = course["river"] or course["short"]
        short = re.sub(r"^River | River$", "", river)
        yield Fact("city", "river", article.title, article.name, article.name, river, aliases=(short, f"{short} River"))
    # A second figure is that of the urban area, of another year, …
    if article.full.count("population") == 1 and (count := _POPULATION.search(article.served)):
        yield Fact("city", "population", article.title, article.name, article.name, count["number"])


def _split_where(where: str, countries: Collection[str]) -> tuple[str, str]:
    """ "Khuzestan province, Iran" → ("Khuzestan", "Iran"); ("", "") where the country is not known."""
    *regions, country = [part.strip() for part in where.split(",")]
    country = re.sub(r"^(?:the |(?:north|south|east|west|centr)[a-z]*(?:ern|al)? )", "", country)
    if proper_name(country) not in countries:
        return "", ""
    region = ", ".join(regions).removeprefix("the ")
    return re.sub(r" (?:[Pp]rovince|[Ss]tate)$", "", region), country


def _located(article: Article, kind: str, country: str) -> Fact:
    phrase = spoken_name(article) if kind == "place" else article.name
    return Fact(kind, "country", article.title, phrase, article.name, country, aliases=other_names(country))
