"""Which CPU cores vLLM computes on."""

from __future__ import annotations

import os

BIND_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"


def cores_to_bind(threads: int) -> str:
    """The first `threads` cores that this process may use, as vLLM wants them: "0,1".

    Left to itself, vLLM keeps a core free and computes on the others, however many threads it is given; on two cores
    that was one, and 1.3 times as slow (docs/runs.md).
    """
    return ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:threads])
