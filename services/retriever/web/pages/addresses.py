"""Which addresses belong to the public internet, so that no page of a stranger leads to what is only near us.

The tables are IANA's registries of special-purpose addresses (2026-11): those of `ipaddress` differ between releases of
Python, and call multicast global.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_NOT_PUBLIC_4 = [
    ip_network(each)
    for each in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's own service on every machine, in a range that is otherwise public
        "169.254.0.0/16",  # with the metadata service of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
# All that is assigned to hosts of the internet so far; mapped, translated and local forms lie outside.
_ASSIGNED_6 = IPv6Network("2000::/3")
# Protocols (Teredo among them), documentation, 6to4: its addresses hold others, and nobody's page has one.
_NOT_PUBLIC_6 = [ip_network(each) for each in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
# How a host with IPv6 alone reaches those without (NAT64): the last 32 bits are the address there.
_TRANSLATED = IPv6Network("64:ff9b::/96")


def is_public(address: str, refused: Collection[IPv4Network | IPv6Network] = ()) -> bool:
    """Whether an address, as the resolver gives it, is one of the public internet; False if it is none at all.

    Args:
        refused: `web.refused_networks`, which are not.
    """
    try:
        known = ip_address(address)
    except ValueError:
        return False
    if any(known in network for network in refused):
        return False
    if isinstance(known, IPv4Address):
        return not any(known in network for network in _NOT_PUBLIC_4)
    if known.scope_id is None and known in _TRANSLATED:
        return is_public(str(IPv4Address(int(known) & 0xFFFF_FFFF)), refused)
    return _is_public_6(known)


def _is_public_6(address: IPv6Address) -> bool:
    if address.scope_id is not None:
        return False
    return address in _ASSIGNED_6 and not any(address in network for network in _NOT_PUBLIC_6)
