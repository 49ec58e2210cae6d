"""Which number format this machine computes fast: what `model.dtype = "auto"` stands for here.

Libraries offer bf16 on processors without instructions for it and then compute it in a naive loop, a hundred times
slower than float32 (AVX2 without AVX-512). So the choice uses both what torch reports and a product that is timed.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from research.settings import Settings

Name = Literal["bfloat16", "float16", "float32"]

# Rows, inputs and outputs of the timed product: a layer of a small model on a short batch.
_SHAPE = (16, 576, 1536)
_SECONDS = 0.1
_CLEARLY = 0.8  # of the seconds of float32
_OBEYED = "as model.dtype says"
# oneDNN caches the code of 1,024 matrix products. Each number of tokens in a batch adds more, about 1 MiB each. With 64
# the policy is as fast and stops growing (docs/results/policy.md), and the trainer grows half as fast.
_CACHED_PRODUCTS = "64"
_SLOW = 1.5  # times the seconds of float32, from which on an explicit format causes a warning


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """A format and why it was chosen.

    `slowdown` is the time of a product in bf16 (or in the configured format) as a multiple of float32's, forward and
    backward, and `gflops` the speed of that product in the chosen format, on one thread; None on a GPU.
    """

    name: Name
    why: str
    slowdown: float | None = None
    gflops: float | None = None
    warning: str = ""

    @property
    def line(self) -> str:
        """One line to print."""
        return f"number format: {self.name} ({self.why})"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def number_format(wish: str, device: str = "auto") -> NumberFormat:
    """The format to compute in.

    Args:
        wish: `model.dtype`; any format but `auto` is obeyed, with a warning if this machine is slow at it.
        device: `cpu`, `cuda`, or `auto` for CUDA if available.
    """
    if not torch.cuda.is_available():
        device = "cpu"
    elif device == "auto":
        device = "cuda"
    return _number_format(wish, device)


@functools.cache
def _number_format(wish: str, device: str) -> NumberFormat:
    if device == "cuda":
        fast = bool(torch.cuda.is_bf16_supported(including_emulation=False))
        auto: Name = "bfloat16" if fast else "float32"
        why = f"this GPU {'computes' if fast else 'does not compute'} bf16"
        return NumberFormat(auto, why) if wish == "auto" else NumberFormat(wish, _OBEYED)  # type: ignore[arg-type]
    # oneDNN reads it at its first product, which is the next.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _CACHED_PRODUCTS)
    speeds = _speeds(torch.float16 if wish == "float16" else torch.bfloat16)
    if wish != "auto":
        return obeyed(wish, speeds, cpu_capability())  # type: ignore[arg-type]
    return decided(_torch_says_bf16(), speeds, cpu_capability())


@dataclass(frozen=True, slots=True)
class ProductSpeeds:
    """GFLOP/s of one product on one thread, forward and backward, in a half-width format and in float32."""

    half: float
    float32: float

    @property
    def slowdown(self) -> float:
        return self.float32 / self.half


def decided(says_bf16: bool, speeds: ProductSpeeds, capability: str) -> NumberFormat:
    """`auto` on a CPU: bf16 only if torch reports kernels for it and they are clearly faster.

    If both are equally fast, the wider one is better, and two services that decide separately must agree.
    """
    slowdown = speeds.slowdown
    compared = f"{1 / slowdown:.1f} x as fast as" if slowdown <= 1 else f"{slowdown:.0f} x slower than"
    why = f"a product in bf16 is {compared} in float32 on this CPU, {capability}"
    if says_bf16 and slowdown <= _CLEARLY:
        return NumberFormat("bfloat16", why, slowdown, speeds.half)
    if not says_bf16:
        why = f"torch has no bf16 kernels for this CPU, {capability}"
    return NumberFormat("float32", why, slowdown, speeds.float32)


def obeyed(wish: Name, speeds: ProductSpeeds, capability: str) -> NumberFormat:
    """The configured format, with a warning if it is slow."""
    if wish == "float32":
        return NumberFormat(wish, _OBEYED, speeds.slowdown, speeds.float32)
    warning = ""
    if speeds.slowdown >= _SLOW:
        warning = (
            f"model.dtype={wish}: this CPU ({capability}) computes it {speeds.slowdown:.0f} x slower than float32; "
            "model.dtype=auto chooses the fast one"
        )
    return NumberFormat(wish, _OBEYED, speeds.slowdown, speeds.half, warning)


def resolved(settings: Settings, device: str) -> tuple[Settings, NumberFormat]:
    """The settings with `model.dtype` resolved for this machine, and the format with its reason."""
    found = number_format(settings.model.dtype, device)
    model = settings.model.model_copy(update={"dtype": found.name})
    return settings.model_copy(update={"model": model}), found


def cpu_capability() -> str:
    """The instruction set that torch uses, such as AVX2 or AVX512."""
    return str(torch.backends.cpu.get_cpu_capability())


def _torch_says_bf16() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return False


def _speeds(dtype: torch.dtype) -> ProductSpeeds:
    """Speeds of the best of several rounds.

    On one thread: with more, the wait for a core that another process uses would be measured instead.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        product, reference = _product(dtype), _product(torch.float32)
        times: list[tuple[float, float]] = []
        started = time.perf_counter()
        # At least three rounds: in the first, oneDNN generates its code.
        while len(times) < 3 or time.perf_counter() - started < _SECONDS:
            times.append((_timed(product), _timed(reference)))
    finally:
        torch.set_num_threads(threads)
    rows, inputs, outputs = _SHAPE
    work = 3 * 2 * rows * inputs * outputs / 1e9
    return ProductSpeeds(work / min(own for own, _ in times), work / min(other for _, other in times))


def _product(dtype: torch.dtype) -> Callable[[], None]:
    rows, inputs, outputs = _SHAPE
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inputs, generator=generator).to(dtype).requires_grad_()
    right = torch.randn(inputs, outputs, generator=generator).to(dtype).requires_grad_()

    def once() -> None:
        (left @ right).sum().backward()  # type: ignore[no-untyped-call]
        left.grad = right.grad = None

    return once


def _timed(work: Callable[[], None]) -> float:
    """Seconds of the processor: on a busy machine the clock on the wall would measure who else runs."""
    started = time.thread_time()
    work()
    return time.thread_time() - started
