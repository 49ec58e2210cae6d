"""The grammar: what counts as a search, an answer, a good form; and that retrieved text stays inert."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.forms.grammar import (
    TAG_NAMES,
    escape_tags,
    extract_answer,
    format_fault,
    search_query,
)
from research.forms.tags import TAGS
from research.passages import Passage

SPECIAL = ("<|im_end|>", "<|im_start|>", "</s>")


@pytest.mark.parametrize(
    ("turn", "query"),
    [
        ("<search>who</search>", "who"),
        ("<think>x</think>\n<search>\n two\n words </search>", "two words"),
        ("<search>first</search> and <search>second</search>", "second"),
        ("<search> </search>", None),
        ("never opened</search>", None),
        ("<search>left open <search>inner</search>", "inner"),
    ],
)
def test_search_query(turn: str, query: str | None) -> None:
    assert search_query(turn) == query


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        (r"<answer>The answer is \boxed{1853}.</answer>", "1853"),
        (r"<answer>\boxed{a} or rather \boxed{b}</answer>", "b"),
        (r"<answer>\boxed{\text{Vincent \text{van} Gogh}}</answer>", "Vincent van Gogh"),
        (r"<answer>\boxed{50\% of \$3}</answer>", "50% of $3"),
        (r"<answer>\boxed{f{g}h}</answer>", "f{g}h"),
        (r"<answer>\boxed{good} \boxed{open</answer>", "good"),
        (r"<answer>\boxed{first}</answer><answer>\boxed{second}</answer>", "first"),
        (r"<answer>\boxed{}</answer>", None),
        (r"<answer>1853</answer>", None),
        (r"\boxed{1853}", None),
    ],
)
def test_extract_answer(turn: str, answer: str | None) -> None:
    assert extract_answer(turn) == answer


SEARCHING = "<think>a</think><search>q</search>"
ANSWERING = r"<think>b</think><answer>\boxed{c}</answer>"


@pytest.mark.parametrize(
    ("turns", "ended", "fault"),
    [
        ([ANSWERING], True, None),
        ([SEARCHING, ANSWERING], True, None),
        ([SEARCHING, SEARCHING, ANSWERING], True, None),
        ([ANSWERING], False, "did not end"),
        ([SEARCHING, "<result>mine</result>" + ANSWERING], True, "result itself"),
        ([r"<answer>\boxed{c}</answer>"], True, "thoughts"),
        (["<think>open" + r"<answer>\boxed{c}</answer>"], True, "thoughts"),
        ([SEARCHING + ANSWERING], True, "search"),
        ([ANSWERING, ANSWERING], True, "search"),
        ([SEARCHING, ANSWERING + ANSWERING], True, "one answer"),
        ([SEARCHING, "<think>b</think>"], True, "one answer"),
        (["<think>b</think><answer>c</answer>"], True, "boxed"),
    ],
)
def test_format_fault(turns: list[str], ended: bool, fault: str | None) -> None:
    found = format_fault(turns, extract_answer(turns[-1]), ended=ended)
    assert found is None if fault is None else found is not None and fault in found


def test_result_block_shows_title_and_text() -> None:
    block = TAGS.result([Passage("1", "Paris", "A city."), Passage("2", "Rome", "Another.")], SPECIAL)
    assert block == '\n<result>\n"Paris"\nA city.\n\n"Rome"\nAnother.\n</result>\n'


def test_nothing_found_is_said() -> None:
    assert "No passage was found." in TAGS.result([], SPECIAL)


@given(
    st.lists(
        st.one_of(
            st.text(max_size=12),
            st.sampled_from([*SPECIAL, *(f"<{t}>" for t in TAG_NAMES), *(f"</{t}>" for t in TAG_NAMES), "< /Result >"]),
        ),
        max_size=12,
    )
)
def test_neutralized_text_holds_no_tag_and_no_special_token(pieces: list[str]) -> None:
    text = escape_tags("".join(pieces), SPECIAL)
    assert not any(token in text for token in SPECIAL)
    lowered = text.lower()
    assert not any(f"<{tag}>" in lowered or f"</{tag}>" in lowered for tag in TAG_NAMES)
    assert escape_tags(text, SPECIAL).replace(" ", "") == "".join(pieces).replace(" ", "")
