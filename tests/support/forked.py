"""Programs of ours for tests, forked from a process that has imported everything already.

What runs is the command itself; only its imports are not repeated at each of some hundred starts: 5 seconds of a
processor for a retriever, 18 for a policy. Refused starts of the policy, stopping while it starts, coming back after a
kill, and one whole run are tested the real way. Beside vLLM, torch is the one that vLLM has changed as it was imported.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_LIGHT = ["cli.main", "services.retriever.main", "services.trainer.main", "services.trainer.wiring"]
# What our modules import only when they need it.
_LATE = ["matplotlib.pyplot", "onnxruntime", "transformers.models.bert.modeling_bert"]
# Not beside vLLM, which looks for kernels in all that has been imported, and fails at an object of llvmlite's.
_LATE_WITHOUT_VLLM = ["bm25s", "Stemmer"]
# What tests fork by themselves comes from the same process.
_CHILDREN = ["checkpoint_child", "lost_ranks_child", "ranks_child", "receiving_server", "tiny_run"]
_VLLM = [
    "services.policy.http_server",
    "vllm.v1.engine.core",
    "vllm.model_executor.models.llama",
]
# Read as OpenMP, oneDNN, transformers, vLLM and rich are loaded.
_AT_IMPORT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "TORCH_COMPILE_DISABLE": "1",
    "COLUMNS": "200",
}
# What else is read so early begins with one of these.
_EARLY = ("PYTHON", "HF_", "VLLM_", "TORCH", "OMP_", "MKL_", "KMP_", "GOMP_", "LD_")
_SECONDS = 300
_preloaded: list[str] = []


class Forked:
    """`research …`, or `python -c …`, with the interface of `subprocess.Popen` as far as tests use it.

    It leads a process group, works in the folder of the tests, and appends what it says to `log`; errors to a
    file of their own, if one is named. With `ignores_sigint` it finds that signal as a job in the background does.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        errors: Path | None = None,
        ignores_sigint: bool = False,
    ) -> None:
        for name, value in environment.items():
            if name.startswith(_EARLY) and _AT_IMPORT.get(name, os.environ.get(name)) != value:
                raise ValueError(f"{name} is read before a fork could set it; start the program the real way")
        process = multiprocessing.get_context("forkserver").Process(
            target=_run, args=(list(arguments), log, errors or log, dict(environment), _preloaded, ignores_sigint)
        )
        process.start()
        self._process: BaseProcess = process
        self.pid = int(process.pid or 0)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("research", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run(["research", …], capture_output=True, text=True)`."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        process = Forked(arguments, out, environment, errors)
        try:
            code = process.wait(_SECONDS)
        finally:
            process.kill()
        return subprocess.CompletedProcess(list(arguments), code, out.read_text(), errors.read_text())


@contextmanager
def importing(with_vllm: bool) -> Iterator[None]:
    """Start the process that imports everything; what a test has forked from it and left behind ends with the block."""
    context = multiprocessing.get_context("forkserver")
    children = [f"tests.support.{name}" for name in _CHILDREN]
    own = _VLLM if with_vllm else _LATE_WITHOUT_VLLM
    _preloaded.extend([*_LIGHT, *_LATE, *children, *own, "tests.support.frozen"])
    context.set_forkserver_preload(_preloaded)
    former = {name: os.environ.get(name) for name in _AT_IMPORT}
    os.environ.update(_AT_IMPORT)
    try:
        context.Process(target=int).start()
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        yield
    finally:
        # Python would wait for them when it ends, and they for Python.
        for process in multiprocessing.active_children():
            process.kill()


def _run(
    arguments: list[str],
    log: Path,
    errors: Path,
    environment: dict[str, str],
    modules: list[str],
    ignores_sigint: bool,
) -> None:
    """In the child: become what `python -m cli.main` would be."""
    os.setsid()
    os.chdir(REPOSITORY)
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    for number, path in ((1, log), (2, errors)):
        with path.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if missing := set(modules) - sys.modules.keys():
        raise RuntimeError(f"could not be imported beforehand: {missing}")  # Python's fork server passes over it
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignores_sigint else signal.default_int_handler)
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        return
    if arguments[:2] == ["serve", "policy"]:
        _serve_policy(arguments[2:])
    sys.argv = ["research", *arguments]
    from cli.main import main

    main()


def _end_with_the_tests() -> None:
    """Also if they were killed and could end nothing."""
    tests = multiprocessing.parent_process()
    if tests is not None:
        tests.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _serve_policy(overrides: list[str]) -> None:
    """vLLM's server without the process above it, which would start it anew."""
    import logging.config

    from research.config import load_settings
    from services.policy.serve import run_server
    from services.web.telemetry.logs import LOGGING

    logging.config.dictConfig(LOGGING)
    run_server(load_settings(overrides=overrides))
    sys.exit(0)
