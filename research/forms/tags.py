"""Forms in which all is one turn with tags, and results stand between what the model writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from research.forms.form import Chat, TurnReader
from research.forms.grammar import (
    RESEARCH,
    RESULT_END,
    RESULT_START,
    SEARCH_END,
    TAG_NAMES,
    THOUGHT_END,
    Tags,
    escape_tags,
    extract_answer,
    format_fault,
    last_closed,
    search_query,
    shown_id,
)
from research.forms.tag_parser import TAGS as MARKS
from research.forms.tag_parser import Mark, StreamingTagParser
from research.passages import Passage

# More than a model needs, and few enough that one turn does not fill a retriever's queue.
MOST_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """How passages are shown: each of them (the first is number 1), all together, and what stands around."""

    passage: Callable[[int, Passage], str]
    body: Callable[[Sequence[str]], str]
    around: tuple[str, str]


_LAYOUT = Layout(
    lambda _, passage: f'"{passage.title}"\n{passage.text}',
    lambda shown: "\n\n".join(shown) or "No passage was found.",
    (f"\n{RESULT_START}\n", f"\n{RESULT_END}\n"),
)


@dataclass(frozen=True, slots=True, eq=False)
class TagForm:
    """See `PromptForm`; as it stands, it is ReSearch's own.

    Attributes:
        dropped: what is taken out of a query.
        separator: parts a query into several, which are searched for at once; those beyond `MOST_AT_ONCE` are not.
        adds_question_mark: to a question without one.
    """

    name: str = "tags"
    tags: Tags = RESEARCH
    stop: tuple[str, ...] = (SEARCH_END,)
    names: tuple[str, ...] = TAG_NAMES
    marks: tuple[Mark, ...] = MARKS
    layout: Layout = _LAYOUT
    chat: Chat = field(default_factory=Chat)
    dropped: tuple[str, ...] = ()
    separator: str | None = None
    adds_question_mark: bool = False

    @property
    def result_tags(self) -> tuple[str, str]:
        return self.tags.result

    @property
    def thought_opened(self) -> bool:
        return self.tags.thought_opened

    @property
    def can_open(self) -> bool:
        return self.tags.page is not None

    @property
    def summary(self) -> str:
        (search, end), (result, result_end), (answer, answer_end) = self.tags.search, self.tags.result, self.tags.answer
        final = "\\boxed{answer}" if self.tags.boxed else "answer"
        query = "query" if self.separator is None else f"query {self.separator} another query"
        asks, ends, found = f"`{search}{query}{end}`", f"`{end}`", "what the search found"
        if self.tags.page is not None:
            asks, ends = f"{asks} or `{'id'.join(self.tags.page)}`", f"{ends} and at `{self.tags.page[1]}`"
            found += " or the page holds"
        return (
            f"It writes `<think>…</think>` and {asks}, reads `{result}passages{result_end}`, and ends\n"
            f"with `{answer}{final}{answer_end}`. The program that runs it stops at {ends}, appends {found}"
        )

    def question(self, text: str) -> str:
        if not self.adds_question_mark:
            return text
        return text.strip() if text.strip().endswith("?") else f"{text.strip()}?"

    def asks(self, turn: str, *, by_itself: bool) -> bool:
        """Where an answer ends a turn, too, what was closed last decides."""
        answers = self.tags.answer[1] in self.stop and turn.rfind(self.tags.answer[1]) > turn.rfind(self.tags.search[1])
        return not by_itself and not answers

    def opens(self, turn: str) -> bool:
        """What was closed last decides, also where a token holds more than the text that ended the turn."""
        return self.tags.page is not None and turn.rfind(self.tags.page[1]) > turn.rfind(self.tags.search[1])

    def query(self, turn: str) -> str | None:
        if self.tags.page is not None and self.opens(turn):
            return last_closed(turn, self.tags.page)
        query = search_query(turn, self.tags)
        if query is None:
            return None
        for text in self.dropped:
            query = query.replace(text, "")
        query = " ".join(query.split())
        return query if self.searches(query) else None

    def searches(self, query: str) -> tuple[str, ...]:
        parts = [query] if self.separator is None else query.split(self.separator)
        return tuple(dict.fromkeys(filter(None, map(str.strip, parts))))[:MOST_AT_ONCE]

    def result(self, passages: Sequence[Passage], special_tokens: Iterable[str]) -> str:
        special_tokens = tuple(special_tokens)
        show, (before, after) = self.layout.passage, self.layout.around
        shown = [escape_tags(show(at, each), special_tokens, self.names) for at, each in enumerate(passages, 1)]
        return f"{before}{self.layout.body(shown)}{after}"

    def answer(self, turn: str) -> str | None:
        return extract_answer(turn, self.tags)

    def fault(self, turns: Sequence[str], answer: str | None, *, ended: bool) -> str | None:
        return format_fault(turns, answer, ended=ended, tags=self.tags)

    def reader(self) -> TurnReader:
        return StreamingTagParser(self.marks, THOUGHT_END if self.thought_opened else None)


_PAGE_START, _PAGE_END = "<open>", "</open>"

TAGS = TagForm()
TAGS_OPEN = TagForm(
    name="tags_open",
    tags=Tags(page=(_PAGE_START, _PAGE_END)),
    stop=(SEARCH_END, _PAGE_END),
    names=(*TAG_NAMES, "open"),
    marks=(*MARKS, Mark(_PAGE_START, _PAGE_END, "open")),
    layout=replace(_LAYOUT, passage=lambda at, passage: f"[{shown_id(passage.id)}] {_LAYOUT.passage(at, passage)}"),
)
TAGS_PARALLEL = TagForm(name="tags_parallel", separator="##")  # as ParallelSearch separates them (arXiv 2508.09303)
