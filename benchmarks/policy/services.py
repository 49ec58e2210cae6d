"""A retriever and a policy for a benchmark, ended with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from benchmarks.retriever.load import SERVE, free_port, serving


@contextmanager
def policy_and_retriever(
    *overrides: str, retriever_port: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The policy's URL and process."""
    os.environ.update(environment or {})
    port, retriever_port = free_port(), retriever_port or free_port()
    policy = [
        *SERVE[:-1],
        "policy",
        f"policy.port={port}",
        f"endpoints.retriever_url=http://127.0.0.1:{retriever_port}",
    ]
    with (
        serving([*SERVE, f"retriever.port={retriever_port}"], retriever_port),
        serving([*policy, *overrides], port, seconds=300) as process,
    ):
        yield f"http://127.0.0.1:{port}", process
