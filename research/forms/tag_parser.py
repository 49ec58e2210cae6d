"""What a model writes, split by tag while it streams: thoughts, searches, the answer, text outside any tag."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

TagSpanKind = Literal["think", "search", "answer", "text"]

_OPENING = re.compile(r"<(think|search|answer)>")
_CLOSING = {kind: re.compile(f"</{kind}>") for kind in ("think", "search", "answer")}
_TAGS = ("<think>", "<search>", "<answer>")


@dataclass(frozen=True, slots=True)
class TagSpan:
    """Some of the text of one step; pieces with the same `step` belong together, in order."""

    step: int
    kind: TagSpanKind
    text: str


class StreamingTagParser:
    """Reads a turn in parts of any size. The steps are those of `research.episode.trace`, without the empty ones.

    White space at the ends of a step is dropped. Text that may begin a tag is held back until this is clear.
    """

    def __init__(self, first_step: int = 0) -> None:
        self.step = first_step
        self._kind: TagSpanKind = "text"
        self._unread = ""
        self._begun = False
        self._spaces: list[str] = []  # white space that is dropped if it ends the step

    def feed(self, text: str) -> list[TagSpan]:
        """Read more text; returns what is certain so far."""
        text = self._unread + text
        pieces: list[TagSpan] = []
        position = 0
        while True:
            inside = self._kind != "text"
            found = (_CLOSING[self._kind] if inside else _OPENING).search(text, position)
            if found is None:
                break
            pieces += self._emit(text[position : found.start()])
            position = found.end()
            self._next_step("text" if inside else found.group(1))  # type: ignore[arg-type]
        certain = len(text) - _uncertain(text[position:], (f"</{self._kind}>",) if inside else _TAGS)
        pieces += self._emit(text[position:certain])
        self._unread = text[certain:]
        return pieces

    def close(self) -> list[TagSpan]:
        """End the turn; returns what was held back."""
        pieces = self._emit(self._unread)
        self._unread = ""
        self._next_step("text")
        return pieces

    def _emit(self, text: str) -> list[TagSpan]:
        text = text if self._begun else text.lstrip()
        shown = text.rstrip()
        if not shown:
            self._spaces.append(text)
            return []
        span = TagSpan(self.step, self._kind, "".join((*self._spaces, shown)))
        self._begun, self._spaces = True, [text[len(shown) :]]
        return [span]

    def _next_step(self, kind: TagSpanKind) -> None:
        if self._begun:
            self.step += 1
        self._kind, self._begun, self._spaces = kind, False, []


def _uncertain(text: str, tags: tuple[str, ...]) -> int:
    """Length of the longest suffix of `text` that is the beginning of a tag."""
    return max(
        (size for tag in tags for size in range(1, min(len(tag), len(text) + 1)) if text.endswith(tag[:size])),
        default=0,
    )
