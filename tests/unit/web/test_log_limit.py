"""Strangers who speak no HTTP fill no log."""

from __future__ import annotations

import logging

import pytest
from fastapi import FastAPI

from services.web.telemetry import log_limit
from services.web.telemetry.log_limit import RepeatLimit
from tests.support.web_server import connect, read_all, serving

TEXT = "Invalid HTTP request received."


def warning(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, text, arguments, None)


def test_fifty_bad_requests_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Without those that the servers of earlier tests have left: they may have let such a line pass a moment ago.
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "filters", [])
    monkeypatch.setattr(log_limit, "_limit", RepeatLimit(lambda: 0.0))
    with serving(FastAPI()) as port:
        for _ in range(50):
            with connect(port, b"\x16\x03\x01 no HTTP\r\n\r\n") as connection:
                read_all(connection)
    assert capsys.readouterr().err.count(TEXT) == 1


def test_the_next_line_counts_those_that_were_left_out() -> None:
    limit = RepeatLimit(iter([0.0, 1.0, 30.0, 59.0, 59.0, 60.0, 200.0]).__next__)
    assert limit.filter(warning(TEXT))
    assert not any(limit.filter(warning(TEXT)) for _ in range(3))
    assert limit.filter(warning("another of %s", "ours"))
    later, again = warning(TEXT), warning(TEXT)
    assert limit.filter(later)
    assert later.getMessage() == f"{TEXT} (3 more were left out before)"
    assert limit.filter(again)
    assert again.getMessage() == TEXT


def test_errors_and_notes_always_pass() -> None:
    limit = RepeatLimit(lambda: 0.0)
    for level in (logging.INFO, logging.ERROR):
        for _ in range(3):
            assert limit.filter(logging.LogRecord("uvicorn.error", level, "", 0, TEXT, (), None))
