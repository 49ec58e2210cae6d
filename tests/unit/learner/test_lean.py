"""Layers that keep less for the backward pass, against transformers' own and autograd."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP, Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from services.trainer.model.lean import make_lean

HIDDEN, INNER = 16, 24


def llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_attention_heads=2, **changes)


def own_and_lean(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter)
    lean = deepcopy(module)
    make_lean(lean)
    return module, lean


def is_lean(module: nn.Module) -> bool:
    return "forward" in vars(module)


def computed(module: nn.Module, x: Tensor, **autocast: Any) -> tuple[Tensor, list[Tensor], float]:
    """Output, gradients of input and parameters, and how many numbers were kept beside input and parameters."""
    x = x.clone().requires_grad_()
    known = {x.untyped_storage().data_ptr(), *(p.untyped_storage().data_ptr() for p in module.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", **autocast):
        output = module(x)
    output.backward(torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype))
    assert x.grad is not None
    return output, [x.grad, *(p.grad for p in module.parameters() if p.grad is not None)], sum(kept.values())


@pytest.mark.parametrize("autocast", [{"enabled": False}, {"dtype": torch.bfloat16}], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["norm", "mlp", "mlp with bias"])
def test_outputs_are_bit_for_bit_the_same_and_gradients_but_for_rounding(kind: str, autocast: dict[str, Any]) -> None:
    config = llama(mlp_bias=kind == "mlp with bias")
    own, lean = own_and_lean(LlamaRMSNorm(HIDDEN) if kind == "norm" else LlamaMLP(config))
    assert is_lean(lean)
    x = torch.randn(1, 7, HIDDEN)
    expected, gradients, kept = computed(own, x, **autocast)
    found, lean_gradients, lean_kept = computed(lean, x, **autocast)
    assert torch.equal(found, expected)
    assert len(gradients) == len(lean_gradients)
    for one, other in zip(gradients, lean_gradients, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2 if "dtype" in autocast else 1e-5, atol=1e-4)
    if not autocast.get("dtype"):  # which keeps copies of the weights, too
        assert lean_kept < 0.7 * kept


def test_a_frozen_weight_gets_no_gradient() -> None:
    _, lean = own_and_lean(LlamaMLP(llama()).requires_grad_(False))
    _, gradients, _ = computed(lean, torch.randn(1, 3, HIDDEN), enabled=False)
    assert len(gradients) == 1


@pytest.mark.parametrize(("mlp", "norm"), [(Qwen2MLP, Qwen2RMSNorm), (Qwen3MLP, Qwen3RMSNorm)])
def test_families_with_the_same_code_are_lean_too(mlp: Any, norm: Any) -> None:
    config = llama()
    for module in (mlp(config), norm(HIDDEN), MistralMLP(config), MistralRMSNorm(HIDDEN)):
        own, lean = own_and_lean(module)
        assert is_lean(lean)
        x = torch.randn(1, 5, HIDDEN)
        assert torch.equal(lean(x), own(x))


def test_other_code_and_other_activations_stay_as_they_are() -> None:
    gelu = llama(hidden_act="gelu")
    gemma = llama(hidden_activation="gelu")
    for module in (LlamaMLP(gelu), Gemma2RMSNorm(HIDDEN), Gemma2MLP(gemma)):
        make_lean(module)
        assert not is_lean(module)
