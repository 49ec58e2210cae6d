"""Logs as one JSON object per line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from research.http import request_id


class JsonLine(logging.Formatter):
    """Formats a record, its traceback included, as one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (name := request_id.current()) is not None:
            line["request"] = name
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonLine}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    # One line per request of an episode would hide everything else.
    "loggers": {"httpx": {"level": "WARNING"}, "mcp": {"level": "WARNING"}},
    "root": {"level": "INFO", "handlers": ["stderr"]},
}
