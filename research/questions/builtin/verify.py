"""What makes a built-in question sound, checked against the passages that a search would show."""

from __future__ import annotations

import re
from collections.abc import Mapping

from research.passages import Passage
from research.questions.builtin.article import served_text, stands_in
from research.questions.model import Question
from research.reward import best, token_f1

_HOPS_OF_KIND = {"one_hop": 1, "two_hop": 2}
_MOST_ANSWER_WORDS = 6
# Words that many names share give nothing away ("United Kingdom" in a question about the United States).
_COMMON_WORDS = frozenset(
    ("republic", "united", "states", "kingdom", "empire", "dynasty", "democratic", "south", "north", "saint", "islands")
)


def verify(question: Question, passages: Mapping[str, Passage], served_words: int) -> list[str]:
    """List what is wrong with a question; an empty list means that it is sound.

    `passages` maps titles to passages, and `served_words` is how many words of a passage a search shows. Checked are
    the shape, that each hop's answer stands in its passage as served, that the question gives no answer away, and that
    the first passage of two does not hold the final answer, nor its answer a word of it.
    """
    problems = _wrong_shape(question)
    if problems:
        return problems
    for number, hop in enumerate(question.hops, start=1):
        passage = passages.get(hop.title)
        if passage is None:
            problems.append(f"hop {number}: there is no passage {hop.title!r}")
        elif not stands_in(hop.answer, served_text(passage, served_words)):
            problems.append(f"hop {number}: {hop.answer!r} does not stand in {hop.title!r} as served")
        if gives_away(question.text, hop.answer):
            problems.append(f"the question gives away the answer of hop {number}, {hop.answer!r}")
    if len(question.hops) == 2 and not problems:
        first, last = question.hops
        if first.title == last.title:
            problems.append("both hops lead to the same passage")
        if any(stands_in(answer, served_text(passages[first.title], served_words)) for answer in question.answers):
            problems.append(f"the first passage {first.title!r} already holds the final answer {last.answer!r}")
        if best(token_f1, first.answer, question.answers) > 0:
            # A model that stops half way would be paid for it: "Spain" is worth F1 0.67 for "Kingdom of Spain".
            problems.append(f"the answer of the first hop, {first.answer!r}, earns a share of the final reward")
    return problems


def gives_away(text: str, answer: str) -> bool:
    """Whether a text names the answer or one of its telling words (a surname, say)."""
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
    elif question.answers[:1] != (question.hops[-1].answer,):
        problems.append("the first gold answer is not the answer of the last hop")
    if not all(answer.strip() and len(answer.split()) <= _MOST_ANSWER_WORDS for answer in question.answers):
        problems.append(f"answers must have 1 to {_MOST_ANSWER_WORDS} words: {question.answers}")
    if not question.text or not question.template:
        problems.append("text and template must be given")
    return problems
