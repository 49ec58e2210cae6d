"""When a request is sent again, and how often that happened."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from prometheus_client import Counter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from research.errors import ServiceBusyError, ServiceError

# By service (a few names of ours) and by reason: those of `ServiceError.reason`.
RETRIES = Counter("research_client_retries", "Requests to other services that were sent again.", ["service", "reason"])
FAILURES = Counter("research_client_failures", "Requests to other services that failed.", ["service", "reason"])

_backoff = wait_random_exponential(multiplier=0.25, max=10.0)
# Whoever says a time beyond this is asked again nevertheless: it may be done sooner, or have meant something else.
_LONGEST_PAUSE_SECONDS = 60.0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` asks for, as a number or as a date; None if there is none, or it is nonsense."""
    given = headers.get("Retry-After", "").strip()
    if given.isascii() and given.isdigit():
        return float(given[:9])  # thirty years
    try:
        then = parsedate_to_datetime(given)
        # A date without a zone is one in GMT.
        return max(0.0, ((then if then.tzinfo else then.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class _Tries:
    """The tries of one request: a few after faults, and as many as its patience allows while the service is busy."""

    def __init__(self, service: str, retries: int, busy_seconds: float) -> None:
        self._service = service
        self._retries = retries
        self._busy_seconds = busy_seconds
        self._busy_until: float | None = None  # counted from when the service says so: a turn may have lasted longer
        self._is_over = False

    def wait(self, state: RetryCallState) -> float:
        error = _error_of(state)
        if not isinstance(error, ServiceBusyError):
            self._busy_until = None
            self._is_over, self._retries = self._retries <= 0, self._retries - 1
            return _backoff(state)
        if self._busy_until is None:
            self._busy_until = time.monotonic() + self._busy_seconds
        left = self._busy_until - time.monotonic()
        self._is_over = left <= 0
        # Not all at the same moment; and who says "at once" is not asked without a pause.
        asked = error.retry_after * random.uniform(1.0, 1.25) if error.retry_after else _backoff(state)
        return max(0.0, min(asked, _LONGEST_PAUSE_SECONDS, left))

    def stop(self, _: RetryCallState) -> bool:
        return self._is_over

    def count(self, state: RetryCallState) -> None:
        RETRIES.labels(self._service, _error_of(state).reason).inc()


def tries(
    service: str, *, retries: int, busy_seconds: float, is_transient: Callable[[ServiceError], bool]
) -> AsyncRetrying:
    """The tries of one request; the last error is raised.

    Args:
        service: for the counters.
        retries: further tries after transient errors.
        busy_seconds: how long a service that is busy (`ServiceBusyError`) is waited for besides.
    """
    own = _Tries(service, retries, busy_seconds)
    return AsyncRetrying(
        retry=retry_if_exception(
            lambda error: (
                isinstance(error, ServiceBusyError) or (isinstance(error, ServiceError) and is_transient(error))
            )
        ),
        wait=own.wait,
        stop=own.stop,
        before_sleep=own.count,
        reraise=True,
    )


def _error_of(state: RetryCallState) -> ServiceError:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, ServiceError)
    return error
