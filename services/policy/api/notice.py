"""What a client should know about the weights that answer."""

from __future__ import annotations

from research.settings import Settings

NOTICE_HEADER = "Research-Notice"


def notice(settings: Settings, *, trained: bool) -> str:
    """One line; empty for weights that have been taught to search.

    A supervised phase in the preset means that its model is too small to follow the rules untrained.
    """
    if trained:
        return ""
    return f"untrained: it {'will not search' if settings.sft.enabled else 'has not been taught to search'}"
