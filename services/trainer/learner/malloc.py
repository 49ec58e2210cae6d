"""Tunes the C library's memory allocation for a training step on the CPU."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Make glibc keep what a step frees for the next step, instead of returning it to the kernel.

    A step allocates and frees the same large activations over and over; by default each is mapped, zeroed and unmapped
    again. Measured on two cores: 1.18 x the tokens per second (benchmarks/trainer/learner.py). Does nothing without
    glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
