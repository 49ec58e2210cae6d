"""How searches of the web are refused: a status for each reason, and words that say what to do.

402, 409 and 507 are final: asking again is in vain until a person has changed something (`ServiceRefusalError`).
"""

from __future__ import annotations

import math
from pathlib import Path

from services.web.errors import HttpError

QUERY_REJECTED = "query_rejected"


def budget_spent(why: str) -> HttpError:
    """Our own cap is reached."""
    told = f"the budget of web searches is spent: {why} and restart the retriever; what is recorded is still answered"
    return HttpError(402, "budget_spent", told)


def account_spent(told: str) -> HttpError:
    """The engine's account has nothing left."""
    return HttpError(402, "account_spent", f"the account at the search engine has nothing left: {told}")


def key_refused(told: str) -> HttpError:
    """The engine does not let us in."""
    return HttpError(
        409, "engine_refused", f"the search engine refuses this retriever; are key and format right? {told}"
    )


def not_recorded(query: str, path: Path) -> HttpError:
    """With `web.replay` nothing is sent."""
    told = f"{query[:200]!r} is not in the record {path.name}, and with web.replay nothing is sent"
    return HttpError(409, "not_recorded", f"{told}; set web.replay=false to ask the web and record the answer")


def record_spoilt(told: str) -> HttpError:
    """A recorded answer cannot be read any more."""
    return HttpError(409, "record_spoilt", told)


def disk_full(path: Path, error: OSError) -> HttpError:
    """What is paid for could not be kept, or a request not counted."""
    told = f"{path.name} cannot be written ({error.strerror or error}), so nothing is sent until it can; make room"
    return HttpError(507, "disk_full", told)


def query_rejected(told: str) -> HttpError:
    """The engine says that the query is at fault."""
    return HttpError(422, QUERY_REJECTED, f"the query is no query to the search engine: {told}")


def engine_busy(told: str, seconds: float | None) -> HttpError:
    """The engine asks for patience."""
    after = max(1, math.ceil(seconds)) if seconds is not None else 1
    return HttpError(503, "engine_busy", f"the search engine is busy: {told}", {"Retry-After": str(after)})


def engine_failed(told: str) -> HttpError:
    """The engine does not answer, or with nonsense."""
    return HttpError(502, "engine_failed", told)
