"""An answer as people read it: without its LaTeX markup, also while it streams."""

from __future__ import annotations

import re

_OPENING = "boxed|text|mathrm|mathbf|textbf|textit"
_COMMAND = re.compile(
    rf"\\(?:{_OPENING})\s*+(?P<opens>\{{)|\\[\[\]()]|\\(?P<escaped>[%$#&_{{}} ,;!])"
    r"|(?P<brace>[{}])|(?P<space>\s+)"
)
# What may become a command in the next part.
_UNCERTAIN = re.compile(rf"\\(?:[a-z]{{0,{max(map(len, _OPENING.split('|')))}}}|(?:{_OPENING})\s++)\Z")


class LatexStripper:
    r"""Removes `\boxed{…}`, `\text{…}` and display brackets, and collapses white space."""

    def __init__(self) -> None:
        self._unread = ""
        self._dropped: list[bool] = []  # for each open brace, whether it belongs to a removed command
        self._begun = False
        self._space = False

    def feed(self, text: str) -> str:
        """Read more text; returns what is certain so far."""
        text = self._unread + text
        uncertain = _UNCERTAIN.search(text)
        certain = uncertain.start() if uncertain else len(text)
        name = text[certain:].rstrip()
        # White space is collapsed anyway; all of it would be read again with each part.
        self._unread = name + " " * (len(name) < len(text) - certain)
        return self._read(text[:certain])

    def close(self) -> str:
        """End the answer; returns what was held back."""
        text, self._unread = self._unread, ""
        return self._read(text)

    def _read(self, text: str) -> str:
        shown: list[str] = []
        position = 0
        for command in _COMMAND.finditer(text):
            self._show(shown, text[position : command.start()])
            position = command.end()
            if command["opens"]:
                self._dropped.append(True)
            elif command["escaped"]:
                self._show(shown, "" if command["escaped"] in " ,;!" else command["escaped"])
            elif command["brace"] == "{":
                self._dropped.append(False)
                self._show(shown, "{")
            elif command["brace"] and not (self._dropped and self._dropped.pop()):
                self._show(shown, "}")
            elif command["space"]:
                self._space = True
        self._show(shown, text[position:])
        return "".join(shown)

    def _show(self, shown: list[str], text: str) -> None:
        if text:
            shown.append(" " * (self._space and self._begun) + text)
            self._begun, self._space = True, False


def strip_latex(text: str) -> str:
    """Strip a whole answer."""
    reader = LatexStripper()
    return reader.feed(text) + reader.close()
