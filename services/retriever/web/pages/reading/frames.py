"""Bytes between us and the process that reads pages: a length, then so many."""

from __future__ import annotations

import struct
from typing import IO

READY = b"ready"  # the first that the process says
_LENGTH = struct.Struct(">I")


def send(stream: IO[bytes], frame: bytes) -> None:
    """Write a frame. Raises OSError if nobody reads."""
    stream.write(_LENGTH.pack(len(frame)))
    stream.write(frame)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """The next frame; None if there is no whole one any more."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    frame = stream.read(length := _LENGTH.unpack(head)[0])
    return frame if len(frame) == length else None
