"""Shows our own log lines among vLLM's, which shows only those of its own modules, with the id of the request."""

from __future__ import annotations

import logging

from research.http import request_id

_OURS = ("research", "services")


class WithId(logging.Filter):
    """Names the request in a line, as vLLM's format has no place for it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if (name := request_id.current()) is not None:
            record.msg, record.args = f"{record.getMessage()} (request {name})", None
        return True


def show_our_lines() -> None:
    """Let our loggers write where vLLM's do, and as they do; again has no further effect."""
    theirs = logging.getLogger("vllm")
    for name in _OURS:
        ours = logging.getLogger(name)
        if ours.handlers or not theirs.handlers:
            continue
        handler = logging.StreamHandler()
        handler.setFormatter(theirs.handlers[0].formatter)
        handler.addFilter(WithId())
        ours.addHandler(handler)
        ours.setLevel(theirs.level)
        ours.propagate = False
