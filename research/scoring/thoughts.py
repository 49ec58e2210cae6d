"""What an episode's own text says of the state of the model: repetition, thoughts, queries asked again, no answer.

Only what the model wrote counts, never a result.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import groupby, takewhile

from research.episode.agent import Episode, StopReason, Turn
from research.forms import form_named
from research.forms.form import PromptForm
from research.forms.grammar import THOUGHT_END, THOUGHT_START
from research.forms.tag_parser import Mark

# A shorter thought ("ok", "...") is as good as none.
_FEWEST_WORDS = 3
# As usual for language models that repeat themselves (seq-rep-4, https://arxiv.org/abs/1908.04319).
_RUN = 4

# Chinese and Japanese put no space between words: there, each character is one.
_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")
_WORD_OR_MARK = re.compile(rf"{_WORD.pattern}|[^\w\s]")


def repeated_share(episode: Episode) -> float:
    """The share, from 0 to below 1, of the runs of four words that occurred before in the episode; 0 without any.

    Runs lie within a turn. Words are case-folded, a punctuation mark counts as one, tags as none; of a search its query
    counts, so that each form has the same share: the words around a call's query are the same in each of them.
    """
    form = form_named(episode.form)
    tag = _tag(form.names)
    runs = [run for turn in episode.turns for run in _runs(tag.sub(" ", _told(turn.text, form).casefold()))]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def is_thoughtless(episode: Episode, turn: Turn) -> bool:
    """Whether all thoughts of a turn together have fewer than three words."""
    return not _thinks(_with_opened_thought(episode, turn), form_named(episode.form))


def plans(episode: Episode) -> bool | None:
    """Whether a thought of three words or more precedes the first search; None if nothing was searched."""
    if not episode.searches:
        return None
    form = form_named(episode.form)
    search = next(mark.opens for mark in form.marks if mark.kind == "search")
    return _thinks(_with_opened_thought(episode, episode.turns[0]).partition(search)[0], form)


def avoids_answer(episode: Episode) -> bool:
    """Whether the model ended the episode by itself, and gave no answer that can be read."""
    return episode.stop_reason is StopReason.ANSWERED and episode.answer is None


def repeated_queries(episode: Episode) -> int:
    """How many searches had a query that was asked before; letter case and white space make no difference."""
    asked = [(turn.opened, turn.query) for turn in episode.turns if turn.query is not None]
    queries = [(opened, " ".join(query.casefold().split())) for opened, query in asked]
    return len(queries) - len(set(queries))


def _told(text: str, form: PromptForm) -> str:
    reader = form.reader()
    steps = groupby((*reader.feed(text), *reader.close()), key=lambda span: span.step)
    return " ".join("".join(span.text for span in own) for _, own in steps)


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _WORD_OR_MARK.findall(text)
    return [tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)]


def _with_opened_thought(episode: Episode, turn: Turn) -> str:
    """What the model wrote in a turn; where it began in a thought that it did not open there, as if it had."""
    before = takewhile(lambda each: each is not turn, episode.turns)
    opened = form_named(episode.form).thought_opened and not any(THOUGHT_END in each.text for each in before)
    return THOUGHT_START + turn.text if opened else turn.text


def _thinks(text: str, form: PromptForm) -> bool:
    return sum(len(_WORD.findall(thought)) for thought in _thought(form.marks).findall(text)) >= _FEWEST_WORDS


@cache
def _tag(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"</?(?:{'|'.join(map(re.escape, names))})>")


@cache
def _thought(marks: tuple[Mark, ...]) -> re.Pattern[str]:
    """A thought that is never closed ends where something else begins."""
    thoughts = [mark for mark in marks if mark.kind == "think"]
    others = [mark.opens for mark in marks if mark.kind != "think"]
    begin = "|".join(re.escape(mark.opens) for mark in thoughts)
    end = "|".join(map(re.escape, (*(mark.closes for mark in thoughts), *others)))
    return re.compile(rf"(?:{begin})(.*?)(?:{end}|\Z)", re.DOTALL)
