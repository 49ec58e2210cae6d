"""Which CPU cores vLLM computes on."""

from __future__ import annotations

import os

BIND_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"


def cores_to_bind(threads: int) -> str:
    """The first `threads` cores that this process may use, in vLLM's notation: "0,1".

    By default vLLM keeps one core free and computes on the others, whatever its number of threads. On two cores it
    computed on one, and was 1.3 times as slow (docs/runs.md).
    """
    return ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:threads])
