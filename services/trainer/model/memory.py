"""Memory of a training step: what it needs, gradient checkpointing where that is too much, and glibc's habits."""

from __future__ import annotations

import ctypes
import logging
import platform
from typing import Any

import psutil
import torch
from torch import nn

from research.settings.training import OptimizerConfig
from services.trainer.model.attention import Layout
from services.trainer.model.forward import blocks_of

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_PROBE_TOKENS = 64
# Of what is free at the start: gradients and optimizer state are still to come, and others live on the machine, too.
_USABLE = 0.8
# Per trained parameter, in float32: the gradient and two moments of Adam.
_BYTES_PER_TRAINED = 12


def keep_freed_memory() -> None:
    """Make glibc keep what a micro-batch frees for the next one, instead of returning it to the kernel.

    A step allocates and frees the same large activations over and over; by default each is mapped, zeroed and unmapped
    again. Measured on two cores: 1.18 x the tokens per second (benchmarks/trainer/learner.py). Does nothing without
    glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def needs_checkpointing(model: Any, optim: OptimizerConfig, device: torch.device, longest: int, ranks: int = 1) -> bool:
    """Whether activations are computed again in the backward pass instead of kept (`optimizer.gradient_checkpointing`).

    `auto` keeps them if those of the longest micro-batch, which may be one episode of `longest` tokens, fit beside
    gradients and optimizer state, and not on several ranks.
    """
    if optim.gradient_checkpointing != "auto":
        return optim.gradient_checkpointing == "on"
    if ranks > 1:
        return True  # whoever divides a model is short of memory, and what fits cannot be tried before all have loaded
    activations = activation_bytes_per_token(model, device) * longest
    states = _BYTES_PER_TRAINED * sum(p.numel() for p in model.parameters() if p.requires_grad)
    free = _free_bytes(device)
    needed = bool(activations + states > _USABLE * free)
    if needed:
        logger.info(
            "gradient checkpointing is on: activations of %d tokens would take %.1f GB, gradients and optimizer "
            "%.1f GB, and %.1f GB are free; smaller optimizer.micro_batch_tokens, and model.max_model_len no larger "
            "than they, may spare the second forward pass",
            longest,
            activations / 1e9,
            states / 1e9,
            free / 1e9,
        )
    return needed


def activation_bytes_per_token(model: Any, device: torch.device) -> float:
    """Bytes that a forward pass keeps for its backward pass, for each token; parameters do not count."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(1, _PROBE_TOKENS, dtype=torch.long, device=device)
    layout = Layout.alone(_PROBE_TOKENS, device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.base_model(input_ids=ids, layout=layout, use_cache=False).last_hidden_state
    del hidden
    return sum(kept.values()) / _PROBE_TOKENS


def enable_checkpointing(model: Any) -> None:
    """Keep only the input of each layer, and compute the layer again in the backward pass.

    transformers does so only in training mode, which would also switch on dropout; it is set to zero first.
    """
    blocks_of(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
