r"""Qwen3's own form, which is Hermes': a search is a tool call, its passages are a message of the tool's.

The model thinks, and ends each of its messages itself: with one call, or with the answer.

    <think>…</think>

    <tool_call>
    {"name": "search", "arguments": {"query": "…"}}
    </tool_call><|im_end|>

The passages follow as the model's chat template renders a user's message `<tool_response>…</tool_response>`, which is
how Qwen3's renders those of tools. What stands around them is the program's, like the passages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

from research.forms.form import Chat, TurnReader
from research.forms.grammar import boxed_answer, escape_tags
from research.forms.tag_parser import Mark, StreamingTagParser, TagSpan, TagSpanKind
from research.passages import Passage

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_THOUGHT, _THOUGHT_END = "<think>", "</think>"
_RESULT = ("<tool_response>", "</tool_response>")
_SEARCH: dict[str, object] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search Wikipedia; returns the passages that match best.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "what to look for"}},
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}
# For chat templates that know no tools, in the form that Hermes 2 Pro introduced.
_TOOLS_TEXT = f"""# Tools

These are the functions that you may call, as JSON schemas:
<tools>
{json.dumps(_SEARCH)}
</tools>

To call one, end your message with a JSON object of its name and its arguments inside the tags of a call:
{_CALL}
{{"name": <function-name>, "arguments": <args-json-object>}}
{_CALL_END}"""
_CHAT = Chat(tools=(_SEARCH,), tools_text=_TOOLS_TEXT)


@dataclass(frozen=True, slots=True, eq=False)
class ToolCallForm:
    r"""See `PromptForm`.

    A message wants a search if it holds a tag of a call outside its thoughts. It must then hold exactly one call, which
    is a JSON object of exactly `name` and `arguments`, with the name `search` and exactly a `query`; everything else
    is malformed, as a search without a query is among the tags.

    Attributes:
        boxed: the answer is in the last `\boxed{}` outside the thoughts; or it is all that stands there.
    """

    name: str
    boxed: bool
    stop: tuple[str, ...] = ()
    names: tuple[str, ...] = ("think", "tool_call", "tool_response", "tools")
    marks: tuple[Mark, ...] = (Mark(_THOUGHT, _THOUGHT_END, "think"), Mark(_CALL, _CALL_END, "search"))
    result_tags: tuple[str, str] = _RESULT
    thought_opened: bool = False
    chat: Chat = _CHAT

    @property
    def summary(self) -> str:
        answer = "in `\\boxed{}`" if self.boxed else "as plain text"
        return (
            'It thinks in `<think>…</think>` and calls the tool `search`: `<tool_call>{"name": "search", "arguments":\n'
            '{"query": "…"}}</tool_call>`. A message without a call is the answer, '
            f"{answer}. The program that runs it puts what the search\nfound into `<tool_response>…</tool_response>`"
        )

    def question(self, text: str) -> str:
        return text

    def asks(self, turn: str, *, by_itself: bool) -> bool:
        said = _said(turn)
        return _CALL in said or _CALL_END in said

    def query(self, turn: str) -> str | None:
        before, opened, call = _said(turn).partition(_CALL)
        call, closed, after = call.partition(_CALL_END)
        if not opened or not closed or _CALL_END in before or _CALL in after or _CALL_END in after:
            return None
        return _query_of(call)

    def opens(self, turn: str) -> bool:
        return False

    def searches(self, query: str) -> tuple[str, ...]:
        return (query,)

    def result(self, passages: Sequence[Passage], special_tokens: Iterable[str]) -> str:
        special_tokens = tuple(special_tokens)
        shown = (escape_tags(f'"{p.title}"\n{p.text}', special_tokens, self.names) for p in passages)
        return "\n".join((_RESULT[0], "\n\n".join(shown) or "No passage was found.", _RESULT[1]))

    def answer(self, turn: str) -> str | None:
        said = _said(turn)
        if self.asks(turn, by_itself=True):
            return None
        return boxed_answer(said) if self.boxed else said.strip() or None

    def fault(self, turns: Sequence[str], answer: str | None, *, ended: bool) -> str | None:
        if not ended:
            return "the episode did not end by itself"
        text = "".join(turns)
        if any(tag in text for tag in _RESULT):
            return "the model wrote a result itself"
        thoughts = text.count(_THOUGHT)
        if thoughts == 0 or thoughts != text.count(_THOUGHT_END):
            return "thoughts are missing or not closed"
        if any(self.query(turn) is None for turn in turns[:-1]) or self.asks(turns[-1], by_itself=True):
            return "a search is not closed or has no result"
        if answer is None:
            return f"there is no {'boxed answer' if self.boxed else 'answer'} after the thoughts"
        return None

    def reader(self) -> TurnReader:
        return _Reader(StreamingTagParser(self.marks))


TOOL_CALLS = ToolCallForm("tool_calls", boxed=True)
TOOL_CALLS_PLAIN = ToolCallForm("tool_calls_plain", boxed=False)


def _said(turn: str) -> str:
    """What stands outside the thoughts, in which a model may think about calls; one that is left open has no end."""
    first, *rest = turn.split(_THOUGHT)
    parts = [part.rpartition(_THOUGHT_END) for part in rest]
    return "".join((first.rpartition(_THOUGHT_END)[2], *(after for _, closed, after in parts if closed)))


def _query_of(call: str) -> str | None:
    try:
        asked = orjson.loads(call)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(asked, dict) or asked.keys() != {"name", "arguments"} or asked["name"] != "search":
        return None
    arguments = asked["arguments"]
    if not isinstance(arguments, dict) or arguments.keys() != {"query"} or not isinstance(arguments["query"], str):
        return None
    return " ".join(arguments["query"].split()) or None


class _Reader:
    """Thoughts are told while they are written; of a call its query; the text that ends a turn without one answers."""

    def __init__(self, parser: StreamingTagParser) -> None:
        self._parser = parser
        self._held: list[TagSpan] = []  # of one step
        self._called = False

    def feed(self, text: str) -> list[TagSpan]:
        return self._told(self._parser.feed(text))

    def close(self) -> list[TagSpan]:
        told = self._told(self._parser.close())
        # The end of a call that was not begun makes a message malformed: it is no answer.
        answers = not self._called and _CALL_END not in "".join(span.text for span in self._held)
        told += self._release("answer" if answers else "text")
        self._called = False
        return told

    def _told(self, spans: list[TagSpan]) -> list[TagSpan]:
        told = []
        for span in spans:
            if self._held and self._held[0].step != span.step:
                told += self._release("text")
            if span.kind == "think":
                told.append(span)
            else:
                self._held.append(span)
        return told

    def _release(self, kind: TagSpanKind) -> list[TagSpan]:
        if not self._held:
            return []
        first, text = self._held[0], "".join(span.text for span in self._held)
        self._held = []
        if first.kind == "search":
            self._called = True
            return [TagSpan(first.step, "search", _query_of(text) or text)]
        return [TagSpan(first.step, kind, text)]
