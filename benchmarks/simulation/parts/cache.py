"""What a policy server still holds of requests that have ended: least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class PrefixCache:
    """Counts tokens per owner: an episode (all that it has so far) or a group (its prompt)."""

    def __init__(self) -> None:
        self._held: OrderedDict[Hashable, int] = OrderedDict()
        self.tokens = 0

    def take(self, owner: Hashable) -> int:
        """The tokens held of `owner`, which a running request now has; 0 if there are none."""
        tokens = self._held.pop(owner, 0)
        self.tokens -= tokens
        return tokens

    def put(self, owner: Hashable, tokens: int) -> None:
        """Hold `tokens` of `owner`, as the most recently used."""
        self.take(owner)
        self._held[owner] = tokens
        self.tokens += tokens

    def shrink(self, room: int) -> None:
        """Drop owners until at most `room` tokens are held."""
        while self.tokens > room:
            _, tokens = self._held.popitem(last=False)
            self.tokens -= tokens

    def clear(self) -> None:
        self._held.clear()
        self.tokens = 0
