"""Facts about the searches of an episode: what each newly found, which corrected the one before, what all served."""

from __future__ import annotations

import re
from dataclasses import dataclass

from research.episode.agent import Episode
from research.questions import Question

# A passage cannot settle these by containing them.
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


@dataclass(frozen=True, slots=True)
class SearchFact:
    """One search: `turn` indexes `Episode.turns`, `found` are the sought answers that its result is the first to hold.

    `corrects`: the search before it found nothing new, and this one, with a different query, did. A page that is opened
    corrects nothing, and comes between two searches as thoughts do.
    """

    turn: int
    query: str
    found: tuple[str, ...]
    corrects: bool


def corrected_queries(episode: Episode, question: Question) -> int:
    """How often the model replaced a search that did not help by a different one that did.

    It counts each pair of consecutive searches (whatever comes between them) where

    1. the first is *unhelpful*: its result holds no new sought answer (one that no earlier result held),
    2. the second is *helpful*: its result holds at least one new sought answer, and
    3. the queries differ, case-folded and with runs of white space taken as one space.

    So a run of several unhelpful searches counts once, at the helpful search that ends it, and a search after
    everything was found never counts.

    The sought answers are those of the question's hops, each on its own. A question without hops has its gold answers,
    any one of which suffices (they are spellings of the same thing). `yes`, `no` and `noanswer` are never sought,
    because finding the word in a passage means nothing; where nothing is left to seek, the count is 0.

    A result is the text of the passages as they were cut for the model (`Turn.result`, titles included), even if the
    last search's result did not fit into the context. It holds an answer if the answer occurs in it as whole words,
    case-folded and with runs of white space taken as one space: "25" is in "(25 Mn)" and in "1925–25", not in "1925".
    This is textual: a passage that holds the words by chance counts as helpful. In scripts that put no space between
    words, an answer is found only where punctuation or an end of line sets it apart.
    """
    return sum(fact.corrects for fact in search_facts(episode, question))


def search_facts(episode: Episode, question: Question) -> list[SearchFact]:
    """One entry per search, in order; see `corrected_queries` for what counts as found and as corrected."""
    sought = _sought(question)
    facts: list[SearchFact] = []
    before: SearchFact | None = None  # the last that was searched for, not opened
    for number, turn in enumerate(episode.turns):
        if turn.query is None:
            continue
        text = _plain(turn.result) if turn.passages and sought else ""
        found = [spellings for spellings in sought if _holds(text, spellings)]
        sought = [spellings for spellings in sought if spellings not in found]
        corrects = (
            bool(found)
            and not turn.opened
            and before is not None
            and not before.found
            and not _is_same_query(before.query, turn.query)
        )
        facts.append(SearchFact(number, turn.query, tuple(spellings[0] for spellings in found), corrects))
        before = before if turn.opened else facts[-1]
    return facts


def served_all(episode: Episode, question: Question) -> bool | None:
    """Whether the results held a passage of each of the question's supporting titles; None if it names none.

    As above, the last search's result counts even if it did not fit into the context.
    """
    titles = set(question.supporting_titles)
    return titles <= {passage.title for turn in episode.turns for passage in turn.passages} if titles else None


def _sought(question: Question) -> list[tuple[str, ...]]:
    """The spellings of each thing to be found."""
    things: list[tuple[str, ...]] = [(hop.answer,) for hop in question.hops] or [question.answers]
    named = (tuple(spelling for spelling in spellings if _is_findable(spelling)) for spellings in things)
    return [spellings for spellings in dict.fromkeys(named) if spellings]


def _is_findable(answer: str) -> bool:
    return bool(answer.strip()) and _plain(answer) not in _CLOSED_ANSWERS


def _holds(text: str, spellings: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(_plain(spelling))}(?!\w)", text) for spelling in spellings)


def _is_same_query(query: str, other: str) -> bool:
    return _plain(query) == _plain(other)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
