"""What a collapsed model or a hostile corpus may write is read in time that grows with its length, and no faster."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.episode.agent import Episode, StopReason, Turn
from research.episode.latex import LatexStripper, strip_latex
from research.episode.search_analysis import search_facts
from research.episode.trace import trace_of
from research.forms.grammar import Tags, escape_tags, extract_answer, search_query
from research.forms.tag_parser import StreamingTagParser
from research.forms.tags import TAGS
from research.passages import Passage
from research.questions import Question
from research.scoring.reward import cover_exact_match, score
from research.strategies.sentences import first_sentence

SPECIAL = ("<|im_end|>", "</s>")
LENGTH = 1_000_000
HOSTILE = {
    "spaces after <": "<" + " " * LENGTH,
    "opened tags": "< /",
    "spaces": " ",
    "lines": "\n",
    "boxes": "\\boxed{",
    "text commands": "\\text{",
    "nested text": "\\text{" * (LENGTH // 14) + "x" * (LENGTH // 2) + "}" * (LENGTH // 14),
    "spaces after text": "\\text" + " " * LENGTH + "x",
    "backslashes": "\\",
    "open braces": "{",
    "braces": "{}",
    "answers": "<answer>",
    "searches": "<search>",
    "ends of searches": "</search>",
    "thoughts": "<think></think>",
    "halves of tags": "<thi",
    "titles": "Dr. ",
    "articles": "the ",
}


def in_parts(reader: LatexStripper | StreamingTagParser, text: str, size: int = 20) -> None:
    for begin in range(0, len(text), size):
        reader.feed(text[begin : begin + size])
    reader.close()


def searched(text: str) -> None:
    turn = Turn("<search>x</search>", "x", [Passage("1", "", text)], text)
    search_facts(Episode("?", [], turns=[turn]), Question("q", "?", ("Vincent van Gogh",)))


READERS: dict[str, Callable[[str], object]] = {
    "title of a passage": lambda text: TAGS.result([Passage("1", text, "")], SPECIAL),
    "query": search_query,
    "left open": lambda text: search_query("<search>" + text),
    "answer": lambda text: extract_answer(f"<answer>{text}</answer>"),
    "box": lambda text: extract_answer(f"<answer>\\boxed{{{text}}}</answer>"),
    "no answer": extract_answer,
    "form": lambda text: Episode("?", [], turns=[Turn(text)]).format_fault,
    "trace": lambda text: trace_of(Episode("?", [], turns=[Turn("<think>" + text)])),
    "plain answer": strip_latex,
    "streamed answer": lambda text: in_parts(LatexStripper(), text),
    "streamed turn": lambda text: in_parts(StreamingTagParser(), text),
    "result": searched,
    "score": lambda text: score(text, ("a b",), None),
    "cover": lambda text: cover_exact_match(text, "a b"),
    "sentence": first_sentence,
}


@contextmanager
def processor_seconds(limit: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer; a busy machine does not count."""

    def too_long(*_: object) -> None:
        raise TimeoutError

    former = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, former)


@pytest.mark.parametrize("reader", READERS)
def test_a_million_characters_of_anything_do_not_hold_it_up(reader: str) -> None:
    slow = []
    for name, unit in HOSTILE.items():
        text = unit * max(1, LENGTH // len(unit))
        try:
            with processor_seconds(2):  # most take a tenth, on a busy machine more; what is quadratic, hours
                READERS[reader](text)
        except TimeoutError:
            slow.append(name)
    assert not slow


ORDINARY = ["\\boxed{", "\\text{", "\\mathbf {", "{", "}", "a", " ", "\n", "\\%", "$", "</s>", "b c"]
MARKUP = ["<answer>", "</answer>", "<search>", "</search>", "<", "</", " / ", "< / think >", "<THINK\n>", "think"]
WRITTEN = st.lists(st.sampled_from([*ORDINARY, *MARKUP]), max_size=16).map("".join)


@given(WRITTEN)
def test_tags_and_queries_are_read_as_regular_expressions_would(text: str) -> None:
    tag = re.compile(r"<(?=\s*/?\s*(?:think|search|result|answer)\s*>)", re.IGNORECASE)
    assert escape_tags(text, ()) == tag.sub("< ", text)
    queries = re.findall(r"<search>((?:(?!<search>).)*?)</search>", text, re.DOTALL)
    assert search_query(text) == ((" ".join(queries[-1].split()) or None) if queries else None)


def answer_by_rewriting(turn: str) -> str | None:
    """As the protocol is written down: the last box that closes; then each command goes that holds no brace."""
    found = re.search(r"<answer>(.*?)</answer>", turn, re.DOTALL)
    block = found[1] if found else ""
    for start in reversed([box.end() for box in re.finditer(r"\\boxed\s*\{", block)]):
        depth = 1
        for position in range(start, len(block)):
            depth += {"{": 1, "}": -1}.get(block[position], 0)
            if depth == 0:
                boxed, former = block[start:position], None
                while former != boxed:
                    former = boxed
                    boxed = re.sub(r"\\(?:text|mathrm|mathbf|textbf|textit)\s*\{([^{}]*)\}", r"\1", boxed)
                return re.sub(r"\\([%$#&_{} ,;!])", r"\1", boxed).strip() or None
    return None


@given(WRITTEN, st.lists(st.sampled_from(ORDINARY), max_size=16).map("".join))
def test_answers_are_read_as_by_rewriting_until_nothing_changes(around: str, inside: str) -> None:
    for turn in (around, f"{around}<answer>{inside}</answer>", f"<answer>\\boxed{{{inside}}}</answer>{around}"):
        assert extract_answer(turn) == answer_by_rewriting(turn)


def test_an_episode_is_read_once_however_often_its_answer_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(turn: str, tags: Tags) -> str | None:
        read.append(turn)
        return extract_answer(turn, tags)

    monkeypatch.setattr("research.forms.tags.extract_answer", counted)
    episode = Episode("?", [], turns=[Turn("<think>a</think><answer>\\boxed{b}</answer>")])
    assert [episode.answer, episode.format_fault, episode.answer] == ["b", None, "b"]
    assert len(read) == 1
    episode.stop_reason = StopReason.TOKEN_LIMIT
    assert episode.format_fault == "the episode did not end by itself"
    episode.turns.append(Turn("<answer>\\boxed{c}</answer>"))
    assert episode.answer == "c"
