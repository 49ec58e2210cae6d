"""On the path of a process under test: a processor with AVX2 and no AVX-512.

Together with ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2, which make torch behave like that, this makes vLLM
load its kernels for AVX2: it asks functions of `torch.cpu`, which look at the processor itself. Python imports this at
the start of every process.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

_MODULE = "torch.cpu"
_DENIED = ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_vnni_supported", "_is_amx_tile_supported")


class _Denying(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for name in _DENIED:
            setattr(module, name, lambda: False)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            spec.loader = _Denying(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
