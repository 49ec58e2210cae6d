"""Why one page is not given: a status for each reason, and words. Other pages may be."""

from __future__ import annotations

from services.web.errors import HttpError

_MAY_PASS = (502, 504)


class PageError(HttpError):
    """A page that is not given; `may_pass` if it may be another time."""

    @property
    def may_pass(self) -> bool:
        return self.status in _MAY_PASS


def no_page(told: str) -> PageError:
    """What was asked for cannot be a page."""
    return PageError(422, "invalid_request", told)


def not_public() -> PageError:
    """It would have come from where only we can reach."""
    told = "the address of its host is not public; web.private_hosts names hosts that may be opened nevertheless"
    return PageError(403, "page_refused", told)


def forbidden(told: str) -> PageError:
    """Its host does not want it read, by us or by anybody."""
    return PageError(403, "page_refused", told)


def not_found(status: int) -> PageError:
    """Its host has no such page."""
    return PageError(404, "page_not_found", f"its host answered {status}")


def unreadable(told: str) -> PageError:
    """What is there is no text that could be given."""
    return PageError(415, "page_unreadable", told)


def failed(told: str) -> PageError:
    """There was no answer, or none that is one."""
    return PageError(502, "page_failed", told)


def too_slow(seconds: float) -> PageError:
    """It did not come in time."""
    return PageError(504, "page_too_slow", f"the page did not come within {seconds:g} s")
