"""Reading what a model writes in parts gives what reading it whole gives."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.episode.agent import Episode, Turn
from research.episode.latex import LatexStripper, strip_latex
from research.episode.trace import trace_of
from research.forms.grammar import extract_answer
from research.forms.tag_parser import StreamingTagParser, TagSpan

FRAGMENTS = [
    "<think>",
    "</think>",
    "<search>",
    "</search>",
    "<answer>",
    "</answer>",
    "<",
    "</",
    "think>",
    " ",
    "\n",
    "a",
    "b c",
]
WRITTEN = st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join)
LATEX = [
    "\\boxed{",
    "\\text {",
    "{",
    "}",
    "\\[",
    "\\]",
    "\\%",
    "\\",
    "boxed",
    " ",
    "\n",
    "x",
    "Vincent van Gogh",
    "\\,",
]


def parts_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[begin:end] for begin, end in pairwise(places)]


def read(parts: list[str]) -> list[TagSpan]:
    reader = StreamingTagParser()
    return [piece for part in parts for piece in reader.feed(part)] + reader.close()


@given(WRITTEN, st.lists(st.integers(0, 200), max_size=8))
def test_the_pieces_are_the_steps_of_the_trace_however_the_text_is_cut(text: str, cuts: list[int]) -> None:
    pieces = read(parts_of(text, cuts))
    steps = [
        (kind, "".join(piece.text for piece in own))
        for (_, kind), own in groupby(pieces, key=lambda piece: (piece.step, piece.kind))
    ]
    episode = Episode("Q?", [1], turns=[Turn(text)])
    assert steps == [(step.kind, step.text) for step in trace_of(episode) if step.text]


def test_a_thought_is_told_while_it_is_written() -> None:
    reader = StreamingTagParser()
    assert reader.feed("<thi") == []
    assert reader.feed("nk>I need") == [TagSpan(0, "think", "I need")]
    assert reader.feed(" a painter. </th") == [TagSpan(0, "think", " a painter.")]
    assert reader.feed("ink>\n<search>Starry") == [TagSpan(1, "search", "Starry")]
    assert reader.close() == []


@given(st.lists(st.sampled_from(LATEX), max_size=16).map("".join), st.lists(st.integers(0, 200), max_size=8))
def test_an_answer_is_unboxed_alike_however_it_is_cut(text: str, cuts: list[int]) -> None:
    reader = LatexStripper()
    assert "".join(reader.feed(part) for part in parts_of(text, cuts)) + reader.close() == strip_latex(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\boxed{Vincent van Gogh}", "Vincent van Gogh"),
        (r" The final answer is \[ \boxed{1853} \] ", "The final answer is 1853"),
        (r"\boxed{\text{Mount Everest}}", "Mount Everest"),
        (r"\boxed{50\%}", "50%"),
        (r"\boxed{the set {1, 2}}", "the set {1, 2}"),
        (r"\boxed{cut of", "cut of"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_the_dress_of_an_answer_is_taken_off(text: str, shown: str) -> None:
    assert strip_latex(text) == shown


@given(st.text("abc {}", min_size=1).filter(lambda text: text.count("{") == text.count("}") == 0 and text.strip()))
def test_what_is_in_the_box_is_the_answer_that_is_scored(text: str) -> None:
    assert strip_latex(f"\\boxed{{{text}}}") == " ".join(
        (extract_answer(f"<answer>\\boxed{{{text}}}</answer>") or "").split()
    )
