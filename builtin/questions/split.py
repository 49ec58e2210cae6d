"""The splits: no entity of training comes up in a held-out question, and some patterns never in training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

_NEW_RELATIONS = frozenset(("official_name", "leader", "order", "symbol", "other_name", "river"))
"""What training never asks for, alone or at the end of a chain."""

_NEW_TEMPLATES = frozenset(
    (
        *("work-year", "person-reign_end", "person-reign_date", "capital-province", "event-end_year"),
        # Chains of relations that training knows from other chains.
        *("work-creator-death_year", "idea-originator-birth_year", "person-country-region"),
        *("person-nationality-neighbour", "country-neighbour-capital", "person-nationality-neighbour-capital"),
        "country-neighbour-neighbour-capital",
        *("comparison-older_work", "comparison-began_first"),
    )
)
"""Further templates that never come up in training: some of every kind, common ones and rare ones."""

_HELD_OUT_PERCENT = 52
# Otherwise the countries, each of which borders another, would pull everything into one group.
_MOST_TITLES_OF_A_GROUP = 30


def entity_groups(chains: Iterable[Sequence[str]]) -> dict[str, str]:
    """Map every title to its group: titles that share a chain, directly or through others, share a group.

    A chain that would make a group too large joins nothing. A group is named after its alphabetically first title.
    """
    members: dict[str, list[str]] = {}
    for chain in chains:
        groups = {id(group): group for group in (members.setdefault(title, [title]) for title in chain)}
        joined = [title for group in groups.values() for title in group]
        if len(joined) <= _MOST_TITLES_OF_A_GROUP:
            for title in joined:
                members[title] = joined
    return {title: min(group) for title, group in members.items()}


def is_new_template(template: str) -> bool:
    """Whether training never sees questions of this template."""
    return template in _NEW_TEMPLATES or template.rpartition("-")[2] in _NEW_RELATIONS


def is_held_out(group: str) -> bool:
    """Whether a group belongs to the held-out set: a fixed share of all hash values of its name."""
    return stable_hash(group) % 100 < _HELD_OUT_PERCENT


def stable_hash(text: str) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
