"""LoRA: a few trained factors beside frozen weights, by peft (https://arxiv.org/abs/2106.09685).

The factors are put into the model in place, so its forward stays ours. The reference of the KL term is the same model
with the factors switched off. Published are merged weights, so that sampler and versions are as without LoRA; the
factors alone are kept as an adapter that the policy can load (`/admin/adapters`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from research.errors import ConfigurationError
from research.settings import Settings
from research.settings.training import LoraConfig
from services.trainer.parallel.ranks import Ranks

ADAPTER = "default"
_WEIGHTS_NAME = "adapter_model.safetensors"


def require_lora(settings: Settings, ranks: Ranks) -> None:
    """Refuse what LoRA cannot do here; raises ConfigurationError."""
    if not ranks.is_alone:
        raise ConfigurationError("lora.rank: LoRA trains in one process only; set trainer.processes=1")
    if settings.optimizer.frozen_layers:
        raise ConfigurationError("optimizer.frozen_layers: with LoRA all weights are frozen anyway; set it to 0")
    if settings.sft.enabled and settings.grpo.kl_coefficient > 0:
        raise ConfigurationError(
            "grpo.kl_coefficient: with LoRA the reference is the model before the supervised phase; set it to 0, or "
            "sft.enabled=false"
        )


def add_lora(model: nn.Module, settings: LoraConfig) -> None:
    """Freeze a model and put factors of `settings.rank` into its linear layers; they begin as no change at all."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(_config(settings), model, ADAPTER)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """The model as it was before it was trained."""
    layers = _layers(model)
    for _, layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers:
            layer.enable_adapters(True)


class MergedState(Mapping[str, Tensor]):
    """The state of a model by its original names, factors merged in; each tensor is computed when it is asked for."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = {f"{name}.weight": layer for name, layer in _layers(model)}
        self._others = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in model.state_dict().items()
            if "lora_" not in name
        }

    def __getitem__(self, name: str) -> Tensor:
        weight: Tensor = self._others[name].detach()
        if name in self._layers:
            with torch.no_grad():
                delta: Tensor = self._layers[name].get_delta_weight(ADAPTER)
                return weight.float() + delta.float()
        return weight

    def __contains__(self, name: object) -> bool:
        return name in self._others

    def __iter__(self) -> Iterator[str]:
        return iter(self._others)

    def __len__(self) -> int:
        return len(self._others)


def write_adapter(model: nn.Module, settings: LoraConfig, base: str, directory: Path) -> None:
    """Write the factors as peft and vLLM read them."""
    config = _config(settings)
    config.base_model_name_or_path = base
    config.save_pretrained(str(directory))
    factors = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if "lora_" in name
    }
    save_file(factors, directory / _WEIGHTS_NAME)


def _config(settings: LoraConfig) -> PeftConfig:
    return PeftConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=settings.targets,
        lora_dropout=0.0,  # it would make the learner another policy than the sampler
        bias="none",
        task_type="CAUSAL_LM",
    )


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
