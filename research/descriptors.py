"""File descriptors: a process may open only so many, and each connection takes one."""

from __future__ import annotations

import resource

# A hard limit may be in the billions, and some libraries walk through all descriptors.
_ENOUGH = 65_536
# For files, models, logs and connections that others open to us.
_OTHERS = 256
# No server gets faster by more; those beyond wait here instead of there.
_MOST_CONNECTIONS = 4_096


def raise_limit() -> None:
    """Allow this process, and those that it starts, as many descriptors as the system lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_each(services: int) -> int:
    """Connections that each of so many services may be sent at once, so that there are descriptors for all of them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    free = max(soft - _OTHERS, soft // 2)
    return max(1, min(_MOST_CONNECTIONS, free // services))
