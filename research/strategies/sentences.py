"""The first sentence of what a model wrote."""

from __future__ import annotations

import re

# No sentence ends after a title, an initial, or an abbreviation such as "e.g.".
_NO_END = re.compile(
    r"(?:\b(?:Dr|Mr|Mrs|Ms|St|Jr|Sr|Prof|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Mt|No|vs|etc|e\.g|i\.e|approx|c|ca)|\b[A-Z])\.$"
)
_LONGEST_NO_END = 10  # characters that `_NO_END` looks at
_END = re.compile(r"[.!?][\"')\]]*(?=\s)")


def first_sentence(text: str) -> str:
    """Up to the first end of a sentence, or all of it: for "Dr. No was written in 1958. It …" up to "1958."."""
    text = text.strip()
    for end in _END.finditer(text):
        if not _NO_END.search(text, max(0, end.end() - _LONGEST_NO_END), end.end()):
            return text[: end.end()]
    return text
