"""Who we say that we are, to search engines and to the hosts of pages."""

from __future__ import annotations

# Also what a robots.txt names.
AGENT = "research-retriever"


def user_agent(contact: str) -> str:
    """The header, with whom to write to if that is set."""
    return f"{AGENT}/0.1" + (f" ({contact})" if contact else "")
