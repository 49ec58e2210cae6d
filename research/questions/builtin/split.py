"""The split by entity: what is asked about in training never comes up in a held-out question."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

_HELD_OUT_PERCENT = 29


def entity_groups(chains: Iterable[Sequence[str]]) -> dict[str, str]:
    """Map every title to its group: titles that share a chain, directly or through others, share a group.

    A group is named after its alphabetically first title.
    """
    parent: dict[str, str] = {}

    def root(title: str) -> str:
        parent.setdefault(title, title)
        while parent[title] != title:
            parent[title] = parent[parent[title]]
            title = parent[title]
        return title

    for first, *others in chains:
        for other in [first, *others]:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return {title: root(title) for title in parent}


def is_held_out(group: str) -> bool:
    """Whether a group belongs to the held-out set: a fixed share of all hash values of its name."""
    return stable_hash(group) % 100 < _HELD_OUT_PERCENT


def stable_hash(text: str) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
