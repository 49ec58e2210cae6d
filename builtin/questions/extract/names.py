"""Names of known people in running text."""

from __future__ import annotations

import re
from collections.abc import Container

_WORD = r"[A-ZÀ-Þ][\w.'’-]*"
NAME = rf"{_WORD}(?: (?:(?:van|von|de|da|di|del|la|le|of|the|ibn|al) )*{_WORD})*"

SEVERAL = re.compile(r"^(?:,? and (?:(?!\w+(?:ed|ing|ten|by)\b)[a-z]+ ){0,2}[A-Z]|,? &|, [A-Z]\w+ [A-Z]|/)")
"""What follows a name that is the first of several."""

_EPITHET = re.compile(
    r"(?:the|[a-z][a-z-]*|Sir|King|Queen|Emperor|Saint|Prophet|[A-Z][a-z-]+(?:an|ish|lsh|ese|ch|man|ss|ek|ic)),?"
)
_MOST_EPITHETS = 8
_LONGEST_NAME = 6


def known_name_after(text: str, start: int, known: Container[str]) -> str | None:
    """The known name with which `text` continues at `start`, epithets skipped; None if it continues otherwise.

    "the Swedish chemist Alfred Nobel in Geesthacht" gives "Alfred Nobel". A name that is the first of several
    ("Marie Curie and Pierre Curie") does not count.
    """
    words = list(re.finditer(r"\S+", text[start:]))
    for skipped in range(min(_MOST_EPITHETS, len(words)) + 1):
        for length in range(_LONGEST_NAME, 0, -1):
            span = words[skipped : skipped + length]
            if not span:
                continue
            raw = text[start + span[0].start() : start + span[-1].end()]
            name = re.sub(r"(?:['’]s)?[.,;:]*$", "", raw)
            if name in known:
                end = start + span[0].start() + len(name)
                return None if SEVERAL.match(text[end:]) else name
        if skipped == len(words) or not _EPITHET.fullmatch(words[skipped].group()):
            return None
    return None
