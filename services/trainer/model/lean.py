"""Layers that keep less for the backward pass: what is cheap to compute again is not kept.

Of a layer of Llama's kind, autograd keeps the normalized input of both norms beside the input itself, and of the MLP
four tensors of its inner size: gate, up, silu(gate) and the product. Here it keeps each norm's input and one number per
token, and gate and up. The forward pass computes the same numbers, bit for bit.
"""

from __future__ import annotations

import inspect
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm


def make_lean(model: nn.Module) -> None:
    """Replace the forward of every norm and gated MLP whose code is Llama's, as that of most families is."""
    module: Any
    for module in model.modules():
        if _has_code_of(type(module), LlamaRMSNorm):
            module.forward = MethodType(_norm_forward, module)
        elif _has_code_of(type(module), LlamaMLP) and isinstance(module.act_fn, SiLUActivation):
            module.forward = MethodType(_mlp_forward, module)


def _has_code_of(kind: Any, other: Any) -> bool:
    """Whether the forward of two classes is the same text; transformers copies it from family to family."""
    if not hasattr(kind, "forward"):
        return False
    try:
        return _text(kind.forward) == _text(other.forward)
    except (OSError, TypeError):  # made at run time
        return False


@cache
def _text(function: Any) -> str:
    return inspect.getsource(function)


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    if type(self.down_proj) is not nn.Linear:  # LoRA has wrapped it
        return self.down_proj(silu(gate) * up)  # type: ignore[no-any-return]
    # Under autocast the products of gate and up are in its format already, and the third follows them.
    weight, bias = self.down_proj.weight.to(gate.dtype), self.down_proj.bias
    return _Down.apply(gate, up, weight, bias if bias is None else bias.to(gate.dtype))  # type: ignore[no-any-return, no-untyped-call]


class _Norm(torch.autograd.Function):
    """weight x (x / sqrt(mean(x^2) + eps)), computed in float32 as Llama's; x [..., H], weight [H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        exact = x.float()
        inverse = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (exact * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        normalized = x.float() * inverse
        gradient = of_output.float()
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradient * normalized).flatten(0, -2).sum(0).to(weight.dtype)
        scaled = gradient * weight
        along = (scaled * normalized).mean(-1, keepdim=True)
        return scaled.sub_(normalized.mul_(along)).mul_(inverse).to(x.dtype), of_weight, None


class _Down(torch.autograd.Function):
    """(silu(gate) x up) through the down projection; gate and up [..., F], weight [H, F] → [..., H]."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        with torch.autocast(gate.device.type, enabled=False):
            return linear(silu(gate) * up, weight, bias)

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        opened = silu(gate)
        of_weight = of_bias = None
        if ctx.needs_input_grad[2]:
            of_weight = of_output.flatten(0, -2).t() @ (opened * up).flatten(0, -2)
        if ctx.needs_input_grad[3]:
            of_bias = of_output.flatten(0, -2).sum(0)
        of_product = of_output @ weight
        of_up = opened.mul_(of_product)
        of_gate = torch.ops.aten.silu_backward(of_product.mul_(up), gate)
        return of_gate, of_up, of_weight, of_bias
