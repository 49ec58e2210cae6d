"""What a model writes, split by tag while it streams: thoughts, searches, pages to open, the answer, other text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

TagSpanKind = Literal["think", "search", "open", "answer", "text"]


@dataclass(frozen=True, slots=True)
class Mark:
    """What opens and closes a step of a kind."""

    opens: str
    closes: str
    kind: TagSpanKind


TAGS = tuple(Mark(f"<{kind}>", f"</{kind}>", kind) for kind in ("think", "search", "answer"))


@dataclass(frozen=True, slots=True)
class TagSpan:
    """Some of the text of one step; pieces with the same `step` belong together, in order."""

    step: int
    kind: TagSpanKind
    text: str


class StreamingTagParser:
    """Reads a turn in parts of any size. The steps are those of `research.episode.trace`, without the empty ones.

    White space at the ends of a step is dropped. Text that may begin a tag is held back until this is clear.

    Args:
        marks: no step begins within another.
        thought_end: ends the thought that the first turn begins in, and in which searches may stand; None: it begins
            in none.
    """

    def __init__(self, marks: Sequence[Mark] = TAGS, thought_end: str | None = None) -> None:
        self.step = 0
        self._marks = {mark.opens: mark for mark in marks}
        self._thought_end = thought_end  # as long as that thought is open
        self._inside: Mark | None = None
        self._unread = ""
        self._begun = False
        self._spaces: list[str] = []  # white space that is dropped if it ends the step

    def feed(self, text: str) -> list[TagSpan]:
        """Read more text; returns what is certain so far."""
        text = self._unread + text
        pieces: list[TagSpan] = []
        position = 0
        while True:
            awaited = self._awaited()
            found = _any_of(awaited).search(text, position)
            if found is None:
                break
            pieces += self._emit(text[position : found.start()])
            position = found.end()
            if self._inside is None and found[0] == self._thought_end:
                self._thought_end = None
            self._next_step(None if self._inside else self._marks.get(found[0]))
        certain = len(text) - _uncertain(text[position:], awaited)
        pieces += self._emit(text[position:certain])
        self._unread = text[certain:]
        return pieces

    def close(self) -> list[TagSpan]:
        """End the turn; returns what was held back."""
        pieces = self._emit(self._unread)
        self._unread = ""
        self._next_step(None)
        return pieces

    def _awaited(self) -> tuple[str, ...]:
        if self._inside:
            return (self._inside.closes,)
        return (*self._marks, self._thought_end) if self._thought_end else tuple(self._marks)

    def _emit(self, text: str) -> list[TagSpan]:
        text = text if self._begun else text.lstrip()
        shown = text.rstrip()
        if not shown:
            self._spaces.append(text)
            return []
        outside: TagSpanKind = "think" if self._thought_end else "text"
        span = TagSpan(self.step, self._inside.kind if self._inside else outside, "".join((*self._spaces, shown)))
        self._begun, self._spaces = True, [text[len(shown) :]]
        return [span]

    def _next_step(self, inside: Mark | None) -> None:
        if self._begun:
            self.step += 1
        self._inside, self._begun, self._spaces = inside, False, []


@cache
def _any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)))


def _uncertain(text: str, tags: tuple[str, ...]) -> int:
    """Length of the longest suffix of `text` that is the beginning of a tag."""
    return max(
        (size for tag in tags for size in range(1, min(len(tag), len(text) + 1)) if text.endswith(tag[:size])),
        default=0,
    )
