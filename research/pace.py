"""How long a generation may take: by its own length, at the pace that its server shows."""

from __future__ import annotations

from collections import deque
from statistics import median

_KEPT = 128
# A pace is believed once so many generations have shown it, each of so many tokens: fewer measure the prefill.
_BELIEVED, _TELLING_TOKENS = 8, 16
# Until then, as on a slow CPU with a full queue.
_UNKNOWN_SECONDS = 0.5
# Servers slow down as they fill; what takes longer than this times the pace is not merely slow.
_SLACK = 4.0


class Pace:
    """Seconds per sampled token of one server, waiting in its queue included, from the generations that ended."""

    def __init__(self, start: float) -> None:
        """`start`: seconds that a generation gets besides those for its tokens, to wait in a queue and be prefilled."""
        self._start = start
        self._seen: deque[float] = deque(maxlen=_KEPT)

    def learn(self, tokens: int, seconds: float) -> None:
        """Note that a generation of so many tokens took so long."""
        if tokens >= _TELLING_TOKENS:
            self._seen.append(seconds / tokens)

    def seconds_for(self, tokens: int) -> float:
        """What a generation of at most so many tokens gets, by what is known now."""
        usual = median(self._seen) * _SLACK if len(self._seen) >= _BELIEVED else _UNKNOWN_SECONDS
        return self._start + usual * tokens
