"""An ASGI layer that gives each request an id: the caller's if it is sane, else one of ours.

The id is in the answer's `X-Request-ID`, in the body of an error, in the log lines of the request, and in the requests
that it makes of other services.
"""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from research.http import request_id
from services.web.telemetry.refusals import begin_request, count_if_nobody_did

logger = logging.getLogger(__name__)

# Refusing must not fill the disk; what strangers are refused must not hide what fails.
_LINES, _SECONDS = 20, 10.0
# Asked again and again while a service starts, and answered with the reason.
_PROBES = ("/livez", "/readyz")
_NAME = request_id.HEADER.lower().encode()


class RequestIds:
    """Names requests, counts those that are refused or fail, and logs at most 20 of each of these in 10 seconds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refused, self._failed = _Lines(), _Lines()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist(request_id.HEADER)
        if len(given) == 1 and request_id.is_sane(given[0]):
            name = given[0]
        else:
            name = request_id.new()
            # Whoever else reads it would take it as it is.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != _NAME]
        # For good: the handler of a bug runs after this, and each request has a task of its own.
        request_id.begin(name)
        begin_request()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[request_id.HEADER] = name
                if message["status"] >= 400:
                    count_if_nobody_did(message["status"])
                    if scope["path"] not in _PROBES:
                        self._log(scope, message["status"])
            await send(message)

        await self._app(scope, receive, named)

    def _log(self, scope: Scope, status: int) -> None:
        lines, level = (self._failed, logging.WARNING) if status >= 500 else (self._refused, logging.INFO)
        if lines.may_one_more():
            logger.log(level, "%s %.100r was answered with %d", scope["method"], scope["path"], status)


class _Lines:
    """Counts lines of one kind, and says how many were left out."""

    def __init__(self) -> None:
        self._since, self._logged, self._left_out = 0.0, 0, 0

    def may_one_more(self) -> bool:
        """Whether the next line is to be logged."""
        if (now := time.monotonic()) - self._since >= _SECONDS:
            if self._left_out:
                logger.warning("%d more refused or failed requests were not logged", self._left_out)
            self._since, self._logged, self._left_out = now, 0, 0
        if self._logged >= _LINES:
            self._left_out += 1
            return False
        self._logged += 1
        return True
