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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from research.forms.form import Chat, TurnReader
from research.forms.grammar import boxed_answer, escape_tags, shown_id
from research.forms.tag_parser import Mark, StreamingTagParser, TagSpan, TagSpanKind
from research.passages import Passage

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_THOUGHT, _THOUGHT_END = "<think>", "</think>"
_RESULT = ("<tool_response>", "</tool_response>")


def _function(name: str, description: str, argument: str, meaning: str) -> dict[str, object]:
    """A function of one text, as `tools` of a chat template has it."""
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string", "description": meaning}},
        "required": [argument],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_SEARCH = _function("search", "Search Wikipedia; returns the passages that match best.", "query", "what to look for")
_SEARCH_WITH_IDS = _function(
    "search",
    "Search; returns the passages that match best, each after its id in brackets.",
    "query",
    "what to look for",
)
_OPEN = _function("open", "Read more of a passage or page that a search has found.", "id", "its id")


def _chat(*functions: dict[str, object]) -> Chat:
    """With the text for chat templates that know no tools, in the form that Hermes 2 Pro introduced."""
    schemas = "\n".join(map(json.dumps, functions))
    text = f"""# Tools

These are the functions that you may call, as JSON schemas:
<tools>
{schemas}
</tools>

To call one, end your message with a JSON object of its name and its arguments inside the tags of a call:
{_CALL}
{{"name": <function-name>, "arguments": <args-json-object>}}
{_CALL_END}"""
    return Chat(tools=functions, tools_text=text)


@dataclass(frozen=True, slots=True, eq=False)
class ToolCallForm:
    r"""See `PromptForm`.

    A message wants a search if it holds a tag of a call outside its thoughts. It must then hold exactly one call, which
    is a JSON object of exactly `name` and `arguments`, with the name `search` and exactly a `query`, or `open` and an
    `id`; everything else is malformed, as a search without a query is among the tags.

    Attributes:
        boxed: the answer is in the last `\boxed{}` outside the thoughts; or it is all that stands there.
        arguments: of each function, the name of its one argument.
    """

    name: str
    boxed: bool
    stop: tuple[str, ...] = ()
    names: tuple[str, ...] = ("think", "tool_call", "tool_response", "tools")
    marks: tuple[Mark, ...] = (Mark(_THOUGHT, _THOUGHT_END, "think"), Mark(_CALL, _CALL_END, "search"))
    result_tags: tuple[str, str] = _RESULT
    thought_opened: bool = False
    chat: Chat = field(default_factory=lambda: _chat(_SEARCH))
    arguments: Mapping[str, str] = field(default_factory=lambda: {"search": "query"})

    @property
    def can_open(self) -> bool:
        return "open" in self.arguments

    @property
    def summary(self) -> str:
        answer = "in `\\boxed{}`" if self.boxed else "as plain text"
        if self.can_open:
            answer += "; it may call\n`open` with the `id` of a passage, too"
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
        return self._asked(call)[1]

    def opens(self, turn: str) -> bool:
        return self._asked(_said(turn).partition(_CALL)[2].partition(_CALL_END)[0])[0] == "open"

    def searches(self, query: str) -> tuple[str, ...]:
        return (query,)

    def result(self, passages: Sequence[Passage], special_tokens: Iterable[str]) -> str:
        special_tokens = tuple(special_tokens)
        ids = (f"[{shown_id(p.id)}] " if self.can_open else "" for p in passages)
        texts = (f'{own}"{p.title}"\n{p.text}' for own, p in zip(ids, passages, strict=True))
        shown = (escape_tags(text, special_tokens, self.names) for text in texts)
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
        return _Reader(StreamingTagParser(self.marks), self._asked)

    def _asked(self, call: str) -> tuple[str, str | None]:
        """The function that is called, and with what; the latter is None if the call is not well written."""
        try:
            asked = orjson.loads(call)
        except orjson.JSONDecodeError:
            return "", None
        if not isinstance(asked, dict) or asked.keys() != {"name", "arguments"} or not isinstance(asked["name"], str):
            return "", None
        name, given = asked["name"], asked["arguments"]
        argument = self.arguments.get(name)
        if not isinstance(given, dict) or given.keys() != {argument} or not isinstance(given[argument], str):
            return name, None
        return name, " ".join(given[argument].split()) or None


TOOL_CALLS = ToolCallForm("tool_calls", boxed=True)
TOOL_CALLS_PLAIN = ToolCallForm("tool_calls_plain", boxed=False)
TOOL_CALLS_OPEN = ToolCallForm(
    "tool_calls_open",
    boxed=True,
    chat=_chat(_SEARCH_WITH_IDS, _OPEN),
    arguments={"search": "query", "open": "id"},
)


def _said(turn: str) -> str:
    """What stands outside the thoughts, in which a model may think about calls; one that is left open has no end."""
    first, *rest = turn.split(_THOUGHT)
    parts = [part.rpartition(_THOUGHT_END) for part in rest]
    return "".join((first.rpartition(_THOUGHT_END)[2], *(after for _, closed, after in parts if closed)))


class _Reader:
    """Thoughts are told while they are written; of a call its query; the text that ends a turn without one answers.

    `asked` reads a call, as `ToolCallForm._asked` does.
    """

    def __init__(self, parser: StreamingTagParser, asked: Callable[[str], tuple[str, str | None]]) -> None:
        self._parser, self._asked = parser, asked
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
            name, query = self._asked(text)
            return [TagSpan(first.step, "open" if name == "open" and query else "search", query or text)]
        return [TagSpan(first.step, kind, text)]
