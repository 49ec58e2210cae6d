"""On the path of a policy server under test: a disk that fails, and gloo in the place of NCCL, which needs two GPUs.

Python imports this at the start of every process of the server. In vLLM's worker a file below a folder named
`unreadable-from-<tensor>` breaks at that tensor; nothing else changes until a test asks for it.
"""

import multiprocessing
import os
import re
from typing import Any

if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":  # Python imports one file of this name, and this is the first
    import tests.emulated_avx2.sitecustomize  # noqa: F401  before torch

import safetensors

import services.transport.nccl as nccl
from tests.support.gloo_group import join_gloo

_open = safetensors.safe_open


class _Breaking:
    def __init__(self, path: Any, **options: Any) -> None:
        self._file = _open(path, **options)
        found = re.search(r"unreadable-from-([\w.]+)/", str(path))
        worker = multiprocessing.current_process().name != "MainProcess"
        self._breaks_at = found.group(1) if found and worker else None

    def __enter__(self) -> "_Breaking":
        self._tensors = self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def keys(self) -> Any:
        return self._tensors.keys()

    def get_tensor(self, name: str) -> Any:
        if name == self._breaks_at:
            raise OSError(f"Input/output error while reading {name}")
        return self._tensors.get_tensor(name)


safetensors.safe_open = _Breaking  # type: ignore[misc, assignment]
nccl.join_group = join_gloo
