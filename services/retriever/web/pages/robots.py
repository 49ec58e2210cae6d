"""robots.txt (RFC 9309): which pages of a host its owner lets programs read.

Python's own reader knows no `*` and `$` in paths and takes the first rule instead of the longest. Others match by
regular expressions, which a hostile file can make run for minutes; here a rule takes as long as to look for its parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

# The least that a reader must take; what is beyond is not looked at.
MOST_BYTES = 512_000
_LINE = re.compile(r"^\s*([A-Za-z-]+)\s*:\s*([^#]*)")
_AGENT = re.compile(r"[A-Za-z_-]+")
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ASCII = "".join(map(chr, range(33, 127)))


@dataclass(frozen=True, slots=True)
class _Rule:
    """A path, its parts between the stars, whether it ends where the last part ends, and what it says."""

    length: int
    parts: tuple[str, ...]
    ends: bool
    allows: bool

    def matches(self, path: str) -> bool:
        first, *others = self.parts
        if not others:
            return path == first if self.ends else path.startswith(first)
        if not path.startswith(first):
            return False
        at = len(first)
        for part in others[:-1]:
            if (found := path.find(part, at)) < 0:
                return False
            at = found + len(part)
        if self.ends:
            return path.endswith(others[-1]) and len(path) - len(others[-1]) >= at
        return path.find(others[-1], at) >= 0


class Robots:
    """What one file says to one agent."""

    def __init__(self, rules: list[_Rule]) -> None:
        # The longest that matches decides, and of two the one that allows.
        self._rules = sorted(rules, key=lambda rule: (-rule.length, not rule.allows))

    @classmethod
    def read(cls, text: str, agent: str) -> Self:
        """The rules of the groups that name the agent, or else of those for all."""
        ours: list[_Rule] = []
        everybodys: list[_Rule] = []
        named = False  # whether any group is ours
        for_us = for_all = begun = False  # whom the group names, and whether it has a rule: then a name begins another
        for line in text.removeprefix("\ufeff").splitlines():
            if (found := _LINE.match(line)) is None:
                continue
            name, value = found[1].lower(), found[2].strip()
            if name == "user-agent":
                if begun:
                    for_us = for_all = begun = False
                who = _AGENT.match(value)
                for_us |= who is not None and who[0].lower() == agent
                for_all |= value == "*"
                named |= for_us
            elif name in ("allow", "disallow"):
                begun = True
                if value and (for_us or for_all):
                    rule = _rule(value, name == "allow")
                    ours += [rule] * for_us
                    everybodys += [rule] * for_all
        return cls(ours if named else everybodys)

    def allows(self, path: str) -> bool:
        """Whether a page may be read, by its path with its query."""
        path = _normal(path)
        return next((rule.allows for rule in self._rules if rule.matches(path)), True)


def _rule(value: str, allows: bool) -> _Rule:
    ends = value.endswith("$")
    pattern = _normal(value.removesuffix("$"))
    return _Rule(len(pattern), tuple(pattern.split("*")), ends, allows)


def _normal(path: str) -> str:
    """With escapes where they are needed, and only there."""
    return _ESCAPED.sub(_escape, quote(path, safe=_ASCII))


def _escape(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()
