r"""The grammar of an episode: tags, what a turn asks for, how results are written, what is well-formed.

One assistant turn reads `<think>…</think><search>query</search><result>…</result>…<answer>…\boxed{final}…</answer>`
(ReSearch, section 2.2). Everything here works on what the *model* wrote, turn by turn; retrieved text is kept apart,
so nothing inside it can be taken for a tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from research.passages import Passage

SEARCH_END = "</search>"
RESULT_START, RESULT_END = "<result>", "</result>"
TAG_NAMES = ("think", "search", "result", "answer")

_QUERY = re.compile(r"<search>((?:(?!<search>).)*?)</search>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_OWN_TAG = re.compile(r"<(?=\s*/?\s*(?:" + "|".join(TAG_NAMES) + r")\s*>)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf|textit)\s*\{([^{}]*)\}")
_LATEX_ESCAPE = re.compile(r"\\([%$#&_{} ,;!])")


def search_query(turn: str) -> str | None:
    """The query of the last closed search of a turn, stripped; None if there is none or it is blank."""
    queries = _QUERY.findall(turn)
    query = " ".join(queries[-1].split()) if queries else ""
    return query or None


def escape_tags(text: str, special_tokens: Iterable[str]) -> str:
    """Make retrieved text inert: a space breaks each protocol tag and each special token of the tokenizer.

    The text stays readable, and encoding it yields neither control tokens nor tags.
    """
    return _OWN_TAG.sub("< ", break_special_tokens(text, special_tokens))


def break_special_tokens(text: str, special_tokens: Iterable[str]) -> str:
    """Put a space after the first character of each special token, so that it encodes as plain text."""
    for token in sorted(special_tokens, key=len, reverse=True):
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def result_block(passages: Sequence[Passage], special_tokens: Iterable[str]) -> str:
    """The text between a search and the next thought: passages as `"Title"` and text, best first."""
    special_tokens = tuple(special_tokens)
    shown = (escape_tags(f'"{p.title}"\n{p.text}', special_tokens) for p in passages)
    body = "\n\n".join(shown) or "No passage was found."
    return f"\n{RESULT_START}\n{body}\n{RESULT_END}\n"


def extract_answer(turn: str) -> str | None:
    r"""The final answer of the last turn: last balanced `\boxed{}` of the first answer block, without LaTeX markup.

    None if there is no answer block, no balanced box, or nothing in it.
    """
    block = _ANSWER.search(turn)
    if block is None:
        return None
    boxed = _last_boxed(block.group(1))
    if boxed is None:
        return None
    previous = None
    while previous != boxed:
        previous, boxed = boxed, _TEXT_COMMAND.sub(r"\1", boxed)
    return _LATEX_ESCAPE.sub(r"\1", boxed).strip() or None


def _last_boxed(text: str) -> str | None:
    for start in reversed([match.end() for match in _BOXED.finditer(text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
    return None


def format_fault(turns: Sequence[str], *, ended: bool) -> str | None:
    """Why an episode is malformed, or None if it is well-formed.

    Args:
        turns: what the model wrote in each turn; every turn but the last was answered with a result.
        ended: whether the model ended by itself (EOS), not by a limit.

    The rules are those of the released code of ReSearch (protocol notes, section 2), checked on sampled text only.
    """
    if not ended:
        return "the episode did not end by itself"
    text = "".join(turns)
    if RESULT_START in text or RESULT_END in text:
        return "the model wrote a result itself"
    thoughts = text.count("<think>")
    if thoughts == 0 or thoughts != text.count("</think>"):
        return "thoughts are missing or not closed"
    searches = text.count("<search>")
    if searches != text.count(SEARCH_END) or searches != len(turns) - 1:
        return "a search is not closed or has no result"
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return "there is not exactly one answer"
    if extract_answer(turns[-1]) is None:
        return "there is no boxed answer inside the answer"
    return None
