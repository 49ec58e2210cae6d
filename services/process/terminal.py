"""Text for the terminal."""

from __future__ import annotations

import unicodedata


def escape_control_chars(text: str) -> str:
    """Replace with U+FFFD the control characters and direction changes that would act on the terminal.

    Passages, answers of models and of other services come from strangers.
    """
    return "".join("\ufffd" if _acts(character) else character for character in text)


def _acts(character: str) -> bool:
    return character not in "\n\t" and (
        unicodedata.category(character) in ("Cc", "Cs")
        or character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
