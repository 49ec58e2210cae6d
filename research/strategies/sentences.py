"""The first sentence of what a model wrote."""

from __future__ import annotations

import re

# After a title or an initial no sentence ends; neither does one after "e.g." and its like.
_NO_END = re.compile(
    r"(?:\b(?:Dr|Mr|Mrs|Ms|St|Jr|Sr|Prof|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Mt|No|vs|etc|e\.g|i\.e|approx|c|ca)|\b[A-Z])\.$"
)
_END = re.compile(r"[.!?][\"')\]]*(?=\s)")


def first_sentence(text: str) -> str:
    """Up to the first end of a sentence, or all of it: of "Dr. No was written in 1958. It …" up to "1958."."""
    text = text.strip()
    for end in _END.finditer(text):
        sentence = text[: end.end()]
        if not _NO_END.search(sentence):
            return sentence
    return text
