"""robots.txt (RFC 9309): which pages of a host its owner lets programs read.

Python's own reader knows no `*` and `$` in paths and takes the first rule instead of the longest. Others match by
regular expressions, which a hostile file can make run for minutes; here a rule takes as long as to look for its parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

# The least that a reader must take; what is beyond is not looked at.
MOST_BYTES = 512_000
# Paths and what stands between their stars; the largest sites have some thousands.
_MOST_PARTS = 20_000
# Estimates, of a rule without and a part without its characters.
_RULE_BYTES, _PART_BYTES = 250, 80
_LINE = re.compile(r"^\s*([A-Za-z-]+)\s*:\s*([^#]*)")
_STARS = re.compile(r"\*+")
_AGENT = re.compile(r"[A-Za-z_-]+")
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ASCII = "".join(map(chr, range(33, 127)))


class TooManyRulesError(ValueError):
    """A file that would take long to keep to."""


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
    """What one file says to one agent.

    Attributes:
        size: about what it takes of memory, in bytes.
    """

    def __init__(self, rules: Mapping[str, bool]) -> None:
        # The longest that matches decides.
        self._rules = sorted((_rule(*each) for each in rules.items()), key=lambda rule: -rule.length)
        parts = sum(len(rule.parts) for rule in self._rules)
        if parts > _MOST_PARTS:
            raise TooManyRulesError(f"it has more than {_MOST_PARTS} rules")
        self.size = 1000 + sum(_RULE_BYTES + _PART_BYTES * len(rule.parts) + rule.length for rule in self._rules)

    @classmethod
    def read(cls, file: bytes, agent: str) -> Self:
        """The rules of the groups that name the agent, or else of those for all.

        It may take half a second.

        Raises:
            TooManyRulesError: of those that concern the agent.
        """
        ours: dict[str, bool] = {}  # by path: of two that are equal the one that allows
        everybodys: dict[str, bool] = {}
        named = False  # whether any group is ours
        for_us = for_all = begun = False  # whom the group names, and whether it has a rule: then a name begins another
        for line in file.decode("utf-8", "surrogateescape").removeprefix("\ufeff").splitlines():
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
                    path = _normal(value)
                    for group in [ours] * for_us + [everybodys] * for_all:
                        group[path] = group.get(path, False) or name == "allow"
        return cls(ours if named else everybodys)

    def allows(self, path: str) -> bool:
        """Whether a page may be read, by its path with its query."""
        path = _normal(path)
        return next((rule.allows for rule in self._rules if rule.matches(path)), True)


def _rule(path: str, allows: bool) -> _Rule:
    ends = path.endswith("$")
    pattern = path.removesuffix("$")
    return _Rule(len(pattern), tuple(_STARS.split(pattern)), ends, allows)


def _normal(path: str) -> str:
    """With escapes where they are needed, and only there. A byte that is no character is escaped as it is."""
    return quote(_ESCAPED.sub(_escape, path), safe=_ASCII, errors="surrogateescape")


def _escape(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()
