"""Facts: what the extractors read from single articles, before any question is asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

# A country has one neighbor in each direction, and one leader at a time; the roles of others only choose words.
DIRECTED = frozenset({"neighbour", "sea", "leader"})


@dataclass(frozen=True, slots=True)
class Fact:
    """One relation of one article.

    `kind` and `relation` name the template ("work", "creator"); `role` picks or fills its wording ("author", "north").
    `subject` is the title of the article it is about, `phrase` how a question refers to it ("the novel Dune") and
    `search` how a query does ("Dune novel"). `answer` occurs in the served text; `aliases` are as good. `read_in` is
    the title of the article that states it, if that is not the subject ("Oslo" states Norway's capital), and
    `leads_to` the name that a chain continues with, if that is not the answer ("France" after "French").
    """

    kind: str
    relation: str
    subject: str
    phrase: str
    search: str
    answer: str
    role: str = ""
    aliases: tuple[str, ...] = ()
    read_in: str = ""
    leads_to: str = ""

    @property
    def title(self) -> str:
        """The title of the passage that states the fact."""
        return self.read_in or self.subject

    @property
    def template(self) -> str:
        """The template of the one-hop question."""
        return f"{self.kind}-{self.relation}"


def unambiguous(facts: Iterable[Fact]) -> list[Fact]:
    """Drop repeats, and every fact whose subject and relation have several answers."""
    answers: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    first: dict[tuple[str, str, str], Fact] = {}
    for fact in facts:
        direction = fact.role if fact.relation in DIRECTED else ""
        key = (fact.subject, fact.relation, direction)
        answers[key].add(fact.answer)
        first.setdefault(key, fact)
    return [fact for key, fact in first.items() if len(answers[key]) == 1]
