r"""The grammar of tags: what a turn asks for, how results are written, what is well-formed, what is in a box.

One assistant turn reads `<think>…</think><search>query</search><result>…</result>…<answer>…\boxed{final}…</answer>`
(ReSearch, section 2.2); other forms have other tags. Everything here works on what the *model* wrote, turn by turn;
retrieved text is kept apart, so nothing inside it can be taken for a tag.

A model that has collapsed writes anything, and so do corpora: every reading here takes time in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

SEARCH_END = "</search>"
THOUGHT_START, THOUGHT_END = "<think>", "</think>"
RESULT_START, RESULT_END = "<result>", "</result>"
TAG_NAMES = ("think", "search", "result", "answer")

_MOST_ID_CHARS = 500  # urls are shorter
_BOX_OR_BRACE = re.compile(r"(?P<box>\\boxed\s*+\{)|[{}]")
_TEXT_OR_BRACE = re.compile(r"(?P<command>\\(?:text|mathrm|mathbf|textbf|textit)\s*+\{)|[{}]")
_LATEX_ESCAPE = re.compile(r"\\([%$#&_{} ,;!])")


@dataclass(frozen=True, slots=True)
class Tags:
    """What opens and closes a search, its result and the answer; and the id of a page to open, if there are such.

    `boxed`: the answer is in a box inside its tags. `last_answer`: of several answers the last counts, not the first.
    `thought_opened`: the prompt ends in `<think>`.
    """

    search: tuple[str, str] = ("<search>", SEARCH_END)
    result: tuple[str, str] = (RESULT_START, RESULT_END)
    answer: tuple[str, str] = ("<answer>", "</answer>")
    page: tuple[str, str] | None = None
    boxed: bool = True
    last_answer: bool = False
    thought_opened: bool = False


RESEARCH = Tags()


def search_query(turn: str, tags: Tags = RESEARCH) -> str | None:
    """The query of the last closed search of a turn, stripped; None if there is none or it is blank."""
    return last_closed(turn, tags.search)


def last_closed(turn: str, pair: tuple[str, str]) -> str | None:
    """What stands in the last closed pair of tags of a turn, with single spaces; None if that is nothing."""
    opens, closes = pair
    for opened in reversed(turn.split(opens)[1:]):
        query, closed, _ = opened.partition(closes)
        if closed:
            return " ".join(query.split()) or None
    return None


def escape_tags(text: str, special_tokens: Iterable[str], names: tuple[str, ...] = TAG_NAMES) -> str:
    """Make retrieved text inert: a space breaks each tag of these names and each special token of the tokenizer.

    The text stays readable, and encoding it yields neither control tokens nor tags.
    """
    return _own_tag(names).sub("< ", break_special_tokens(text, special_tokens))


@cache
def _own_tag(names: tuple[str, ...]) -> re.Pattern[str]:
    # Possessive: white space that was read once is not divided in other ways.
    return re.compile(r"<(?=\s*+(?:/\s*+)?(?:" + "|".join(map(re.escape, names)) + r")\s*+>)", re.IGNORECASE)


def shown_id(page: str) -> str:
    """The id of a passage as a model is shown it; one that is cut is not one that can be opened."""
    return " ".join(page[:_MOST_ID_CHARS].split())


def break_special_tokens(text: str, special_tokens: Iterable[str]) -> str:
    """Put a space after the first character of each special token, so that it encodes as plain text."""
    for token in sorted(special_tokens, key=len, reverse=True):
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def without_end(text: str, special_tokens: Iterable[str]) -> str:
    """The text of a turn that a special token ended, without that token."""
    return text.removesuffix(max((token for token in special_tokens if text.endswith(token)), key=len, default=""))


def extract_answer(turn: str, tags: Tags = RESEARCH) -> str | None:
    r"""The final answer of the last turn: last balanced `\boxed{}` of the answer block, without LaTeX markup.

    None if there is no answer block, no balanced box, or nothing in it. Where answers have no box, it is the block.
    """
    opens, closes = tags.answer
    _, opened, answered = turn.rpartition(opens) if tags.last_answer else turn.partition(opens)
    block, closed, _ = answered.partition(closes) if opened else ("", "", "")
    if not closed:
        return None
    return boxed_answer(block) if tags.boxed else block.strip() or None


def boxed_answer(text: str) -> str | None:
    r"""What the last balanced `\boxed{}` of a text holds, without LaTeX markup; None if that is nothing."""
    boxed = _last_boxed(text)
    if boxed is None:
        return None
    return _LATEX_ESCAPE.sub(r"\1", _without_text_commands(boxed)).strip() or None


def _last_boxed(text: str) -> str | None:
    """The content of the last box that is closed."""
    opened: list[tuple[int, bool]] = []  # where the content of each open brace begins, and whether it is a box
    last: tuple[int, int] | None = None
    for brace in _BOX_OR_BRACE.finditer(text):
        if brace[0] != "}":
            opened.append((brace.end(), brace["box"] is not None))
        elif opened:
            begin, is_box = opened.pop()
            if is_box and (last is None or begin > last[0]):
                last = begin, brace.start()
    return text[slice(*last)] if last is not None else None


def _without_text_commands(text: str) -> str:
    r"""`\text{…}` and the like give way to what they hold, from the inside out, if that holds no other brace."""
    pieces: list[str] = []
    opened: list[tuple[int, bool]] = []  # the piece of each open brace that may be removed, and whether it is a command
    position = 0
    for brace in _TEXT_OR_BRACE.finditer(text):
        pieces.append(text[position : brace.start()])
        position = brace.end()
        if brace[0] != "}":
            opened.append((len(pieces), brace["command"] is not None))
        elif opened and opened[-1][1]:
            pieces[opened.pop()[0]] = ""
            continue
        else:
            opened.clear()  # a brace stays, so whatever encloses it stays, too
        pieces.append(brace[0])
    return "".join((*pieces, text[position:]))


def format_fault(turns: Sequence[str], answer: str | None, *, ended: bool, tags: Tags = RESEARCH) -> str | None:
    """Why an episode is malformed, or None if it is well-formed.

    Args:
        turns: what the model wrote in each turn; every turn but the last was answered with a result.
        answer: what `extract_answer` found in the last of them.
        ended: whether the model ended by itself (EOS), not by a limit.

    The rules are those of the released code of ReSearch (protocol notes, section 2), checked on sampled text only.
    """
    if not ended:
        return "the episode did not end by itself"
    text = "".join(turns)
    if any(tag in text for tag in tags.result):
        return "the model wrote a result itself"
    thoughts = text.count(THOUGHT_START) + tags.thought_opened
    if thoughts == 0 or thoughts != text.count(THOUGHT_END):
        return "thoughts are missing or not closed"
    pairs = [tags.search] if tags.page is None else [tags.search, tags.page]
    asked = [text.count(opens) for opens, _ in pairs]
    if asked != [text.count(closes) for _, closes in pairs] or sum(asked) != len(turns) - 1:
        return f"a search {'or a page ' if tags.page else ''}is not closed or has no result"
    if any(text.count(tag) != 1 for tag in tags.answer):
        return "there is not exactly one answer"
    if answer is None:
        return f"there is no {'boxed answer' if tags.boxed else 'text'} inside the answer"
    return None
