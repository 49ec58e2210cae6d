"""What makes a built-in question valid, checked against the passages that a search would show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from builtin.questions.extract.article import served_text, stands_in
from research.passages import Passage
from research.questions.model import Hop, Question
from research.scoring.reward import best, token_f1

_HOPS_OF_KIND = {"one_hop": 1, "two_hop": 2, "three_hop": 3, "comparison": 2}
_MOST_ANSWER_WORDS = 6
# An episode shows 48 tokens of a passage, and a token is a word at most: no later word can give an answer away.
_MOST_SHOWN_WORDS = 48
# Words that many names share give nothing away ("United Kingdom" in a question about the United States).
_COMMON_WORDS = frozenset(
    ("republic", "united", "states", "kingdom", "empire", "dynasty", "democratic", "south", "north", "saint", "islands")
)


def verify(question: Question, passages: Mapping[str, Passage], served_words: int) -> list[str]:
    """List what is wrong with a question; an empty list means that it is valid.

    `passages` maps titles to passages, and `served_words` is how many words of a passage a search is sure to show.
    It checks the shape, that each hop's answer occurs in its passage as served, that the question gives no answer away,
    and that no part of a chain can be skipped: no passage holds the answer of a later hop, and no intermediate answer
    earns part of the final reward.
    """
    problems = _wrong_shape(question)
    if problems:
        return problems
    for number, hop in enumerate(question.hops, start=1):
        passage = passages.get(hop.title)
        if passage is None:
            problems.append(f"hop {number}: there is no passage {hop.title!r}")
        elif not stands_in(hop.answer, served_text(passage, served_words)):
            problems.append(f"hop {number}: {hop.answer!r} does not occur in {hop.title!r} as served")
        if gives_away(question.text, hop.answer):
            problems.append(f"the question gives away the answer of hop {number}, {hop.answer!r}")
    if not problems and len({hop.title for hop in question.hops}) < len(question.hops):
        problems.append("two hops lead to the same passage")
    if not problems and question.kind == "comparison":
        problems += _wrong_comparison(question)
    elif not problems:
        problems += _short_cuts(question, passages)
    return problems


def _short_cuts(question: Question, passages: Mapping[str, Passage]) -> list[str]:
    problems = []
    for number, hop in enumerate(question.hops[:-1], start=1):
        shown = served_text(passages[hop.title], _MOST_SHOWN_WORDS)
        later = [*(later.answer for later in question.hops[number:]), *question.answers]
        problems += [
            f"passage {number}, {hop.title!r}, already holds {answer!r}" for answer in later if stands_in(answer, shown)
        ]
    # A model that stops halfway would be rewarded for it: "Spain" is worth F1 0.67 for "Kingdom of Spain".
    return problems + _paid_on_the_way(question, question.hops[:-1])


def _wrong_comparison(question: Question) -> list[str]:
    problems = _paid_on_the_way(question, question.hops)
    answer = question.answers[0]
    if answer not in ("yes", "no") and not stands_in(answer, question.text):
        problems.append(f"the answer {answer!r} is neither yes nor no, nor named in the question")
    return problems


def _paid_on_the_way(question: Question, hops: Sequence[Hop]) -> list[str]:
    return [
        f"the intermediate answer {hop.answer!r} earns part of the final reward"
        for hop in hops
        if best(token_f1, hop.answer, question.answers) > 0
    ]


def gives_away(text: str, answer: str) -> bool:
    """Whether a text names the answer or one of its distinctive words (such as a surname)."""
    words = set(_words(text))
    return stands_in(answer.casefold(), text.casefold()) or any(
        len(word) > 3 and word in words for word in _words(answer) if word not in _COMMON_WORDS
    )


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _wrong_shape(question: Question) -> list[str]:
    problems = []
    if len(question.hops) != _HOPS_OF_KIND.get(question.kind):
        problems.append(f"a {question.kind!r} question with {len(question.hops)} hops")
    elif question.kind != "comparison" and question.answers[:1] != (question.hops[-1].answer,):
        problems.append("the first gold answer is not the answer of the last hop")
    if not all(answer.strip() and len(answer.split()) <= _MOST_ANSWER_WORDS for answer in question.answers):
        problems.append(f"answers must have 1 to {_MOST_ANSWER_WORDS} words: {question.answers}")
    if not question.text or not question.template:
        problems.append("text and template must not be empty")
    return problems
