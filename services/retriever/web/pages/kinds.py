"""What a host says that a page is.

By hand: Python's reader of such headers, which aiohttp uses, raises IndexError or RecursionError over some of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

HTML = ("text/html", "application/xhtml+xml")
PLAIN = ("text/plain", "text/markdown")
_KIND = re.compile(r"\s*([\w.+-]+/[\w.+-]+)", re.ASCII)
_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([\w.:-]{1,40})", re.ASCII | re.IGNORECASE)


def kind_and_charset(headers: Mapping[str, str]) -> tuple[str, str]:
    """The type of a body, in lower case, and its encoding, or ""; bytes if there is no type that is one."""
    told = headers.get("Content-Type", "")
    kind, charset = _KIND.match(told), _CHARSET.search(told)
    return kind[1].lower() if kind else "application/octet-stream", charset[1] if charset else ""
