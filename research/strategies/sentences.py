"""The first sentence of what a model wrote."""

from __future__ import annotations

import re

# No sentence ends after a title, an initial, or an abbreviation such as "e.g.".
_NO_END = re.compile(
    r"(?:\b(?:Dr|Mr|Mrs|Ms|St|Jr|Sr|Prof|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Mt|No|vs|etc|e\.g|i\.e|approx|c|ca)|\b[A-Z])\.$"
)
_END = re.compile(r"[.!?][\"')\]]*(?=\s)")


def first_sentence(text: str) -> str:
    """Up to the first end of a sentence, or all of it: for "Dr. No was written in 1958. It …" up to "1958."."""
    text = text.strip()
    for end in _END.finditer(text):
        sentence = text[: end.end()]
        if not _NO_END.search(sentence):
            return sentence
    return text
