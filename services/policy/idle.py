"""Waiting without burning a core, for the CPU only."""

from __future__ import annotations


def wait_by_notification() -> None:
    """Let vLLM's engine process sleep while its worker computes.

    The two exchange messages through shared memory, and the reader spins for a second after each message before it
    waits for a notification. A machine with many cores does not notice; on two cores the spinning takes one of them from
    the worker. Waiting at once costs a system call a message. Measured: see docs/decisions.md.
    """
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # The only argument with a default is the time to spin, in seconds.
        SpinCondition.__init__.__defaults__ = (0.0,)
