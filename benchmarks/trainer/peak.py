"""Peak memory of one update in this process; for processes whose freed memory returns to the system."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil

# glibc keeps more or less of what is freed, as chance has it; with these variables it gives back all but crumbs.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_above_states(update: Callable[[], object], trained: int) -> int:
    """Bytes that an update needs at its peak, above weights, gradients and Adam's two moments.

    Args:
        update: makes an update; called twice, the first time so that Adam's moments are there.
        trained: number of trained parameters, whose float32 gradients are not counted.
    """
    update()
    process, peak, ended = psutil.Process(), 0, threading.Event()
    idle = process.memory_info().rss  # weights and Adam; gradients are freed between updates

    def watch() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    update()
    ended.set()
    watching.join()
    return peak - idle - 4 * trained
