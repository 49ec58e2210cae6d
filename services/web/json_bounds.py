"""Refuses a JSON body of very many values before it is parsed: parsing takes seconds, and twenty times its memory."""

from __future__ import annotations

import numpy as np

_CHUNK = 65_536
_QUOTE, _COMMA, _LIST, _OBJECT = b'",[{'


def fault_of(body: bytes, most: int) -> str | None:
    """What is wrong with a body of more than `most` values: items and fields, nested ones included; else None.

    It need not be JSON; what is not will be refused by the parser.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) <= most:
        return None
    # UTF-16 has them in all JSON; the characters that are counted would not mean what they mean here.
    if b"\0" in body:
        return "the body is not JSON in UTF-8"
    return f"the body has more than {most} values (items and fields)" if _has_more_values(body, most) else None


def _has_more_values(body: bytes, most: int) -> bool:
    text = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    inside, found = False, 0
    for start in range(0, len(text), _CHUNK):
        chunk = text[start : start + _CHUNK]
        in_string = np.logical_xor.accumulate(chunk == _QUOTE) ^ inside
        inside = bool(in_string[-1])
        found += int(np.count_nonzero(((chunk == _COMMA) | (chunk == _LIST) | (chunk == _OBJECT)) & ~in_string))
        if found > most:
            return True
    return False
