"""Other names that a lead itself gives: "Zinedine Zidane, popularly known as Zizou"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from builtin.questions.extract.article import Article, search_name, spoken_name
from builtin.questions.extract.facts import Fact

_NAME = r"[A-ZÀ-Þ][\w'’.-]*(?: (?:(?:of|the|de|van|von|al) )*[A-ZÀ-Þ][\w'’-]*){0,3}"
_ALSO_KNOWN_AS = re.compile(
    r"^(?P<before>[^.;:]*?),? (?:(?:is|was|are|were) )?(?:also|better|commonly|popularly|widely|often) "
    rf"(?:known|called|referred to)(?: simply)?(?: as| by)? (?:the )?(?P<name>{_NAME})(?=[,.;]| (?:is|was|are|were)\b)"
    r"(?! [A-Z])"
)
_SEVERAL = re.compile(r"^,? (?:or|and) ")


def other_name_facts(article: Article) -> Iterator[Fact]:
    """The one other name that the first sentence of the lead gives its subject."""
    match = _ALSO_KNOWN_AS.match(article.lead)
    if match is None or _SEVERAL.match(article.lead[match.end() :]) or not _only_its_name(article, match["before"]):
        return
    yield Fact(
        "article", "other_name", article.title, spoken_name(article), search_name(article), match["name"].rstrip(".")
    )


def _only_its_name(article: Article, before: str) -> bool:
    """Whether only the subject comes before, so that nothing else can be "also known as" that name."""
    words = [word for word in re.findall(r"[^\W_]+", before) if word[0].isupper()]
    last = article.name.split()[-1]
    return last in words and len(before.split()) <= len(article.name.split()) + 3
