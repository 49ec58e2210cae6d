"""A passage as the extractors read it: a name, a short description and the words that a search shows."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from research.passages import Passage

# A period after a lone capital belongs to initials ("F. Scott Fitzgerald"), except in "U.S."; after "c", to a year.
_END_OF_SENTENCE = re.compile(r"(?<!\b[A-Zcrd])(?<!\bfl)\. |(?<=\bU\.S)\. ")
_WORD_AFTER_A_NAME = r"(?:is|was|are|were|has|had|and|or|in|of|by|at|on|from|to|began|ended|took|lies|lasted)\b"
_DISAMBIGUATION = re.compile(r" \([^)]*\)$")


@dataclass(frozen=True, slots=True)
class Article:
    """One passage, split once for all extractors.

    `name` is the title without its disambiguation, `description` the first sentence of the text without its
    period, `lead` what follows it, `served` what a search shows and `full` the uncut title and text.
    """

    title: str
    name: str
    description: str
    lead: str
    served: str
    full: str


def served_text(passage: Passage, words: int) -> str:
    """The title and the first `words` words of the text: what the policy sees of a passage."""
    return f"{passage.title}\n{' '.join(passage.text.split()[:words])}"


def read_article(passage: Passage, served_words: int) -> Article:
    """Split a passage into the parts that the extractors look at; `lead` is truncated like `served`."""
    seen = " ".join(passage.text.split()[:served_words])
    description, *rest = _END_OF_SENTENCE.split(seen, maxsplit=1)
    return Article(
        title=passage.title,
        name=_DISAMBIGUATION.sub("", passage.title),
        description=description.rstrip("."),
        lead=rest[0] if rest else "",
        served=served_text(passage, served_words),
        full=f"{passage.title}\n{passage.text}",
    )


def spoken_name(article: Article) -> str:
    """The name as it appears within a sentence: "the Tang dynasty", "psychoanalysis", "the footballer Marta"."""
    what = _disambiguation(article)
    if what:
        return f"the {what} {article.name}"
    for name in (article.name, lower_first(article.name)):
        # "The Oprah Winfrey Show" and "the Mario franchise" do not count.
        if re.search(rf"\b[Tt]he {re.escape(name)}(?:[,.;:)]| {_WORD_AFTER_A_NAME})", article.full):
            return f"the {name}"
    return lower_first(article.name) if stands_in(lower_first(article.name), article.full) else article.name


def search_name(article: Article) -> str:
    """The name as a query uses it: "Marta footballer"."""
    what = _disambiguation(article)
    return f"{article.name} {what}" if what else article.name


def _disambiguation(article: Article) -> str:
    match = re.search(r" \((?P<what>[a-z]+(?: [a-z]+)?)\)$", article.title)
    return match["what"] if match else ""


def lower_first(name: str) -> str:
    """ "Golden eagle" → "golden eagle"; a name with further capitals stays as it is."""
    return name if any(char.isupper() for char in name[1:]) else name[:1].lower() + name[1:]


def stands_in(phrase: str, text: str) -> bool:
    """Whether `phrase` occurs in `text` as whole words, case-sensitively."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def without_accents(text: str) -> str:
    """ "Yasujirō" → "Yasujiro"."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(char for char in decomposed if not unicodedata.combining(char))
