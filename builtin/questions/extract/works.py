"""Facts about works and ideas: who made them, and when."""

from __future__ import annotations

import re
from collections.abc import Iterator

from builtin.questions.extract.article import Article, lower_first, search_name, spoken_name
from builtin.questions.extract.facts import Fact
from builtin.questions.extract.names import NAME, SEVERAL, known_name_after

_KINDS_OF_ROLE = {
    "author": (
        *("novel", "novels", "novella", "book", "poem", "play", "essay", "treatise", "tragedy", "comedy", "pamphlet"),
        *("dialogue", "short story", "story collection", "poetry collection", "memoir", "autobiography"),
        *("literary work", "work of history", "work", "encyclopedia"),
    ),
    "director": ("film", "film series"),
    "painter": ("painting", "paintings", "fresco", "woodblock print", "portrait", "altarpiece"),
    "sculptor": ("sculpture", "statue"),
    "composer": (
        *("opera", "operas", "symphony", "ballet", "composition", "concerto", "concerti", "musical", "oratorio"),
        "mass",
    ),
    "musician": ("album", "song", "single"),
    "creator": (
        *("works", "comic strip", "comic albums", "manga series", "fictional character", "media franchise"),
        "artwork series",
    ),
}
_ROLE_OF_KIND = {kind: role for role, kinds in _KINDS_OF_ROLE.items() for kind in kinds}
_SPOKEN_KINDS = {"comic strip", "manga series", "film series", "media franchise"} | {
    kind for kind in _ROLE_OF_KIND if " " not in kind and kind != "composition" and not kind.endswith("s")
}
# Every composer has a "Symphony No. 5".
_NUMBERED = re.compile(r"\w+ No\. \d")
_KIND = "|".join(sorted(_ROLE_OF_KIND, key=len, reverse=True))
_DESCRIBED_WORK = re.compile(
    rf"^(?:(?P<year>\d{{4}}) )?(?P<before>(?:(?!\b(?:is|are|includes)\b).)*?)\b(?P<kind>(?i:{_KIND}))"
    r"(?: (?:written|directed|created|composed|attributed|compiled|of \w+|on \w+|in verse|in seven volumes))?"
    r" (?:by|to) (?:the )?(?:Sir |[A-Z][a-z]+(?:an|ish|ese|ch|ek) [a-z]+ )?"
    rf"(?P<maker>{NAME})(?P<rest>.*)$"
)

_VERBS_OF_ROLE = {
    "founder": ("founded", "established", "started"),
    "creator": ("created",),
    "inventor": ("invented",),
    "discoverer": ("discovered",),
    "developer": ("developed", "designed"),
    "proposer": ("introduced", "proposed", "formulated", "formalized", "articulated"),
    "author": ("written",),
    "painter": ("painted",),
    "composer": ("composed",),
    "director": ("directed",),
    "publisher": ("published",),
}
_ROLE_OF_VERB = {verb: role for role, verbs in _VERBS_OF_ROLE.items() for verb in verbs}
_MADE_BY = re.compile(rf"\b(?P<verb>(?i:{'|'.join(_ROLE_OF_VERB)}))(?: in (?:the )?(?:\w+ )?\d{{4}}| into \w+)? by ")


def work_facts(article: Article) -> Iterator[Fact]:
    """Maker and year of a work, from a description such as "1897 novel by Bram Stoker"."""
    match = _DESCRIBED_WORK.match(article.description)
    if match is None or SEVERAL.match(match["rest"]) or _NUMBERED.match(article.name):
        return
    kind = match["kind"].lower()
    role = _ROLE_OF_KIND[kind]
    # One does not say "who painted the painting …", and a "Cycle of four operas" is not the opera.
    spoken = kind in _SPOKEN_KINDS and role != "painter" and " of " not in match["before"]
    phrase = f"the {kind} {article.name}" if spoken else spoken_name(article)
    search = f"{article.name} {kind}" if spoken else article.name
    maker = match["maker"].rstrip(".")
    yield Fact("work", "creator", article.title, phrase, search, maker, role)
    if match["year"]:
        yield Fact("work", "year", article.title, phrase, search, match["year"])


def idea_facts(article: Article, people: set[str]) -> Iterator[Fact]:
    """Founder, inventor, discoverer, … of anything but a person; the maker must be one of `people`."""
    if article.title in people or _NUMBERED.match(article.name):
        return
    for sentence in (article.description, article.lead):
        for match in _MADE_BY.finditer(sentence):
            maker = known_name_after(sentence, match.end(), people)
            if maker:
                role = _ROLE_OF_VERB[match["verb"].lower()]
                yield Fact("idea", "originator", article.title, _idea(article), search_name(article), maker, role)


def _idea(article: Article) -> str:
    """ "information theory" and "the atomic nucleus", but "Mendelian inheritance"."""
    name = spoken_name(article)
    named_after_somebody = re.match(r"\w+(?:ian|['’]s)\b", name)
    return lower_first(name) if " " in name and not named_after_somebody else name
