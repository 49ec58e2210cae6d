"""LoRA: a few trained factors beside frozen weights, by peft (https://arxiv.org/abs/2106.09685).

The factors are put into the model in place, so its forward stays ours. The reference of the KL term is the same model
with the factors switched off. Published are merged weights, so that sampler and versions are as without LoRA; the
factors alone are kept as an adapter that the policy can load (`/admin/adapters`).
"""

from __future__ import annotations

import math
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
from transformers.pytorch_utils import Conv1D

from research.errors import ConfigurationError
from research.settings import Settings
from research.settings.training import LoraConfig
from services.trainer.parallel.ranks import Ranks
from services.trainer.parallel.shards import local, place_of, whole

ADAPTER = "default"
_WEIGHTS_NAME = "adapter_model.safetensors"


def require_lora(settings: Settings) -> None:
    """Refuse what LoRA cannot do here; raises ConfigurationError."""
    if settings.optimizer.frozen_layers:
        raise ConfigurationError("optimizer.frozen_layers: with LoRA all weights are frozen anyway; set it to 0")
    if settings.sft.enabled and settings.grpo.kl_coefficient > 0:
        raise ConfigurationError(
            "grpo.kl_coefficient: with LoRA the reference is the model before the supervised phase; set it to 0, or "
            "sft.enabled=false"
        )


def add_lora(model: nn.Module, settings: LoraConfig) -> None:
    """Freeze a model and put factors of `settings.rank` into its linear layers; `reset_factors` gives them numbers.

    A model on torch's meta device keeps its factors there.

    Raises ConfigurationError if `settings.targets` name anything else, or nothing that is there.
    """
    _require_linear(model, settings)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with next(model.parameters()).device:
        inject_adapter_in_model(_config(settings), model, ADAPTER)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _require_linear(model: Any, settings: LoraConfig) -> None:
    head = model.get_output_embeddings()  # its weights alone are used: its factors would never be trained
    ends = tuple(f".{target}" for target in settings.targets)
    named = [(name, module) for name, module in model.named_modules() if f".{name}".endswith(ends)]
    for name, module in named:
        if module is head or not isinstance(module, (nn.Linear, Conv1D)):
            raise ConfigurationError(f"lora.targets: {name} is no linear layer of the model's blocks; name only such")
    if not named:
        raise ConfigurationError(f"lora.targets: this model has no {', '.join(settings.targets)}")


@torch.no_grad()
def reset_factors(model: nn.Module, seed: int) -> None:
    """Let the factors begin as no change at all: the second of each pair is 0, the first random, as peft has it.

    The numbers depend on the seed alone, not on how many ranks the model is divided over.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, layer in _layers(model):
        first, second = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        numbers = nn.init.kaiming_uniform_(torch.empty(first.shape), a=math.sqrt(5), generator=generator)
        start, own = place_of(first)[0], local(first)
        own.copy_(numbers[start : start + len(own)])
        local(second).zero_()


def name_in_base(name: str) -> str | None:
    """What the base model calls a tensor of a model with factors; None for a factor."""
    return None if "lora_" in name else name.replace(".base_layer.", ".")


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """The model as it was before it was trained; what needs a gradient stays so, as FSDP asks in its first pass."""
    layers = _layers(model)
    for _, layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for _, layer in layers:
            layer._disable_adapters = False


class MergedState(Mapping[str, Tensor]):
    """The state of a model by its original names, factors merged in; each tensor is computed when it is asked for.

    Of a model that is divided over ranks, every rank must ask for the same: tensors with factors come whole.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = dict(_layers(model))
        self._state = model.state_dict()
        self._names = {known: name for name in self._state if (known := name_in_base(name)) is not None}

    def __getitem__(self, name: str) -> Tensor:
        weight: Tensor = self._state[self._names[name]].detach()
        layer = name.removesuffix(".weight")
        if layer not in self._layers:
            return weight
        first, second = (whole(self._state[f"{layer}.lora_{each}.{ADAPTER}.weight"].detach()).float() for each in "AB")
        if self._layers[layer].fan_in_fan_out:
            first, second = second.T, first.T
        return torch.addmm(whole(weight).float(), second, first, alpha=self._layers[layer].scaling[ADAPTER])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_adapter(model: nn.Module, settings: LoraConfig, base: str, directory: Path, ranks: Ranks) -> None:
    """Write the factors as peft and vLLM read them: rank 0 does, once every rank has given its part."""
    factors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if "lora_" in name:
            gathered = whole(tensor.detach())
            if ranks.leads:
                factors[f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}"] = gathered.cpu().contiguous()

    def write() -> None:
        if ranks.leads:
            config = _config(settings)
            config.base_model_name_or_path = base
            config.save_pretrained(str(directory))
            save_file(factors, directory / _WEIGHTS_NAME)

    ranks.together(write)


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
