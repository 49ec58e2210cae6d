"""What a prompt form is: everything about an episode that depends on how a model writes searches and answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from research.forms.tag_parser import Mark, TagSpan
from research.passages import Passage


class TurnReader(Protocol):
    """Reads turns in parts of any size, and tells their steps as soon as they are certain; `close` ends each turn."""

    def feed(self, text: str) -> list[TagSpan]: ...

    def close(self) -> list[TagSpan]: ...


@dataclass(frozen=True, slots=True)
class Chat:
    """How a form uses a model's chat template, beside its rules as the system message.

    Attributes:
        filled: the prompt with the question in it is one user message; a model without a template reads it bare.
        tools: what a model may call, as `tools` of `apply_chat_template`; a result is then a message of its own.
        tools_text: says the same where a template knows no tools.
    """

    filled: bool = False
    tools: tuple[dict[str, object], ...] = ()
    tools_text: str = ""


class PromptForm(Protocol):
    """One form. All readings take time in proportion to the text, and read only what the model wrote.

    Attributes:
        name: in a prompt's first line, and in the records of episodes.
        stop: texts that end a turn; none where a turn ends only as the model's messages do.
        names: of the tags that a passage must not hold, without brackets.
        marks: the tags that a turn is cut at into steps.
        result_tags: what stands around the passages.
        thought_opened: the prompt ends in `<think>`, and that thought goes on until the model ends it, in any turn.
        chat: how it uses a chat template.
        can_open: the model may have a page opened.
        summary: for the card of a trained model: what it writes, and what it is shown.
    """

    @property
    def name(self) -> str: ...
    @property
    def stop(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def marks(self) -> tuple[Mark, ...]: ...
    @property
    def result_tags(self) -> tuple[str, str]: ...
    @property
    def thought_opened(self) -> bool: ...
    @property
    def chat(self) -> Chat: ...
    @property
    def can_open(self) -> bool: ...
    @property
    def summary(self) -> str: ...

    def question(self, text: str) -> str:
        """A question as the prompt holds it."""
        ...

    def asks(self, turn: str, *, by_itself: bool) -> bool:
        """Whether a finished turn wants a search, well written or not; `by_itself`: no stop text ended it."""
        ...

    def query(self, turn: str) -> str | None:
        """What a turn asks for, with single spaces: a query, or the id of a page; None if that is nothing."""
        ...

    def opens(self, turn: str) -> bool:
        """Whether what `query` finds in a turn is the id of a page that is to be opened, and not searched for."""
        ...

    def searches(self, query: str) -> tuple[str, ...]:
        """What is searched for, all at once, by a query that `query` returned: at least one text, none twice."""
        ...

    def result(self, passages: Sequence[Passage], special_tokens: Iterable[str]) -> str:
        """The passages as the model is shown them, with nothing in them that means anything but itself."""
        ...

    def answer(self, turn: str) -> str | None:
        """The final answer in the last turn; None if there is none."""
        ...

    def fault(self, turns: Sequence[str], answer: str | None, *, ended: bool) -> str | None:
        """Why an episode is malformed, or None.

        Args:
            turns: what the model wrote in each; every one but the last was answered with passages.
            answer: what `answer` found in the last.
            ended: whether the model ended by itself, not by a limit.
        """
        ...

    def reader(self) -> TurnReader:
        """Cuts the turns of an episode into steps, one after the other."""
        ...
