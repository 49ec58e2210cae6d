"""Strangers must not fill the log: a warning of uvicorn, such as of a request that is no HTTP, comes once a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

PERIOD_SECONDS = 60.0
# uvicorn's warnings have a handful of texts; more would be texts that strangers make up.
_MOST_TEXTS = 100


class RepeatLimit(logging.Filter):
    """Lets one warning of each text pass in a minute; the next one tells how many were left out.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._since: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        text, now = str(record.msg), self._clock()
        if now - self._since.get(text, -PERIOD_SECONDS) < PERIOD_SECONDS:
            self._left_out[text] = self._left_out.get(text, 0) + 1
            return False
        if len(self._since) >= _MOST_TEXTS:
            self._since.clear()
            self._left_out.clear()
        self._since[text] = now
        if left_out := self._left_out.pop(text, 0):
            record.msg, record.args = f"{record.getMessage()} ({left_out} more were left out before)", None
        return True


_limit = RepeatLimit()


def limit_warnings_of_strangers() -> None:
    """Limit uvicorn's warnings in this process; again has no further effect."""
    logging.getLogger("uvicorn.error").addFilter(_limit)
