"""Why one page is not given: a status for each reason, and words. Other pages may be."""

from __future__ import annotations

from services.web.errors import HttpError

_FAILED, _TOO_SLOW = 502, 504
_ADDRESS, _PAUSED = "address_refused", "host_paused"


class PageError(HttpError):
    """A page that is not given."""

    @property
    def may_pass(self) -> bool:
        """Whether it may be given another time: it failed, or our settings or our resolver had a part in it."""
        return self.status in (_FAILED, _TOO_SLOW) or self.error == _ADDRESS

    @property
    def is_outcome(self) -> bool:
        """Whether it says something of the page, for which its host was asked."""
        return self.error != _PAUSED


def no_page(told: str) -> PageError:
    """What was asked for cannot be a page."""
    return PageError(422, "invalid_request", told)


def not_public() -> PageError:
    """It would have come from where only we can reach."""
    told = "the address of its host is not public; web.private_hosts names hosts that may be opened nevertheless"
    return PageError(403, _ADDRESS, told)


def leads_astray(told: str) -> PageError:
    """Its host names another address that is not opened."""
    return PageError(403, _ADDRESS, f"its host leads on to what is not opened: {told}")


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
    return PageError(_FAILED, "page_failed", told)


def paused(seconds: float) -> PageError:
    """Its host was not asked."""
    return PageError(_FAILED, _PAUSED, f"its host wants a pause, of which {seconds:.0f} s are left")


def too_slow(seconds: float) -> PageError:
    """It did not come in time."""
    return PageError(_TOO_SLOW, "page_too_slow", f"the page did not come within {seconds:g} s")


def no_reader(told: str) -> HttpError:
    """No page can be read now, whichever it is."""
    return HttpError(503, "reader_failed", f"pages cannot be read: {told}; see the retriever's log")
