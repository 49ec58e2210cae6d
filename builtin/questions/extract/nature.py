"""Facts about nature: elements, living things, stars; and the families of languages."""

from __future__ import annotations

import re
from collections.abc import Iterator

from builtin.questions.extract.article import Article, lower_first, search_name, spoken_name, stands_in
from builtin.questions.extract.facts import Fact

_ELEMENT = re.compile(r"^Chemical element with atomic number (?P<number>\d+) \((?P<symbol>[A-Z][a-z]?)\)")
_TAXON = re.compile(r"^(?:[\w-]+ ){0,3}(?:genus|family|order|species|subfamily|suborder|superfamily)\b", re.IGNORECASE)
_RANKS = {
    "family": re.compile(r"\bfamily \(?(?P<name>[A-Z][a-z]+(?:idae|aceae))\b"),
    "order": re.compile(r"\border (?P<name>[A-Z][a-z]{4,})\b"),
    "genus": re.compile(r"\bgenus (?P<name>[A-Z][a-z]{2,})\b"),
}
_COMPARED = re.compile(r"\b(?:related|unlike|closer|similar|other|formerly|previously|once)\b")
_SPECIES_COUNT = re.compile(
    r"(?<!to )(?<![\d,–-])(?P<number>[1-9]\d{0,2}(?:,\d{3})*|[1-9]\d{3})"
    r" (?:(?:known|accepted|described|recognized|living|extant|different) )*species\b"
)
_WIDER = re.compile(r"^(?:[\w-]+ ){0,2}(?:sub|super)?(?:family|order|class|clade|tribe)\b", re.IGNORECASE)
_GROUP = re.compile(r"^(?:[\w-]+ ){0,2}(?:genus|family|order) of\b", re.IGNORECASE)
_STAR = re.compile(
    r"\b(?:star|cluster|galaxy|nebula|system|remnant)\b.*"
    r"\bin the constellation (?:of )?(?P<name>[A-Z][a-z]+(?: [A-Z][a-z]+)?)"
)
_LANGUAGE = re.compile(r"^(?P<family>[A-Z][\w–-]+(?: [A-Z][\w–-]+)?) language\b(?! (?:family|isolate))")
_ONLY_A_PLACE = re.compile(
    r"^(?:Official|National|Ancient|Extinct|Classical|Constructed|Sacred|Writing|International)\b"
)


def nature_facts(article: Article) -> Iterator[Fact]:
    """Every fact in one article about an element, a living thing, a star or a language."""
    element = _ELEMENT.match(article.description)
    if element:
        name = article.name.lower()
        yield Fact("element", "number", article.title, name, article.name, element["number"])
        yield Fact("element", "symbol", article.title, name, article.name, element["symbol"])
    star = _STAR.search(article.description)
    if star:
        yield Fact("star", "constellation", article.title, spoken_name(article), search_name(article), star["name"])
    language = _LANGUAGE.match(article.description)
    if language and not _ONLY_A_PLACE.match(language["family"]) and article.name.endswith("language"):
        phrase = f"the {article.name}"
        yield Fact("language", "family", article.title, phrase, article.name, language["family"])
    if _TAXON.match(article.description) or _RANKS["family"].search(article.served):
        yield from _taxonomy(article)
    if _GROUP.match(article.description) and _living_thing(article) == article.name:
        for match in _SPECIES_COUNT.finditer(article.served):
            yield _taxon_fact(article, "species_count", match["number"])


def family_name(article: Article) -> str | None:
    """The scientific name of the family that the article is about ("Columbidae"), if it is about one."""
    if not re.match(r"(?:[\w-]+ ){0,3}[Ff]amily of\b", article.description):
        return None
    names = {match["name"] for match in _RANKS["family"].finditer(f"family {article.name} {article.served}")}
    return names.pop() if len(names) == 1 else None


def _taxonomy(article: Article) -> Iterator[Fact]:
    for relation, pattern in _RANKS.items():
        # The genus that a wider group mentions is an example, not its parent.
        if relation == "genus" and (_WIDER.match(article.description) or _living_thing(article) == article.name):
            continue
        for match in pattern.finditer(article.served):
            sentence = article.served[: match.start()].rpartition(". ")[2]
            if match["name"] != article.name and not _COMPARED.search(sentence):
                yield _taxon_fact(article, relation, match["name"])


def _taxon_fact(article: Article, relation: str, answer: str) -> Fact:
    return Fact("taxon", relation, article.title, _living_thing(article), search_name(article), answer)


def _living_thing(article: Article) -> str:
    """ "the golden eagle" for a common name, which has a plural or a small letter; else the name itself."""
    common = lower_first(article.name)
    stem, ending = article.name[:-1], article.name[-1]
    plural = re.search(rf"\b{re.escape(stem)}(?:ies|{re.escape(ending)}e?s)\b", article.full)
    if plural or stands_in(common, article.full):
        return f"the {common}"
    return spoken_name(article)
