"""The model's forward as training needs it: a packed row in, log-probabilities of its sampled tokens and a loss out.

It replaces the forward of the root module, because sharding (FSDP) gathers a module's parameters in its forward; a
head called from outside would find shards.
"""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from research.errors import ConfigurationError, TrainingError
from research.settings.training import LoraConfig
from services.trainer.model.attention import PACKED
from services.trainer.model.batching import MicroBatch, TrainingSequence, collate
from services.trainer.model.head import Projection, TokenLoss, TokenOutput, token_logprobs, token_loss
from services.trainer.model.lean import make_lean
from services.trainer.model.lora import add_lora, name_in_base
from services.trainer.parallel.ranks import Ranks
from services.trainer.parallel.shards import load_rows, shard

# Two ways to compute the same float32 log-probabilities differ by about 1e-5; a factor that one forgets, by nats.
_TOLERANCE_NATS, _HALF_TOLERANCE_NATS = 1e-2, 0.5
_PROBE_TOKENS = 12


def load_model(
    checkpoint: Path,
    device: torch.device,
    temperature: float,
    dtype: torch.dtype,
    weights: torch.dtype = torch.float32,
) -> Any:
    """A model whose forward is `packed_forward`, with weights in one format that compute in another, `dtype`.

    Raises ConfigurationError if its attention cannot be packed, or if it computes in a way that is not known here.
    """
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=weights, local_files_only=True, attn_implementation=PACKED
        )
    except ValueError as error:
        raise ConfigurationError(f"model.name: {checkpoint} cannot be trained in packed rows: {error}") from error
    model.to(device).eval()  # eval: dropout would make the learner another policy than the sampler
    expected = own_logprobs(model, device)
    install_forward(model, temperature, dtype)
    check_forward(model, expected, device, _TOLERANCE_NATS if weights == torch.float32 else _HALF_TOLERANCE_NATS)
    return model


def load_sharded(
    checkpoint: Path,
    device: torch.device,
    temperature: float,
    dtype: torch.dtype,
    ranks: Ranks,
    lora: LoraConfig | None = None,
) -> Any:
    """As `load_model`, divided over the ranks; with LoRA's factors, if `lora` is given.

    No rank ever holds the whole model, and each reads only its own rows. The forward is not compared with the model's
    own here, which would need the whole model; the check of the sampler at the start of every run covers it.
    """
    transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    with torch.device("meta"):
        weights = dtype if lora else torch.float32  # frozen weights need no more
        model = AutoModelForCausalLM.from_config(config, dtype=weights, attn_implementation=PACKED)
    model.eval()
    install_forward(model, temperature, dtype, autocast=False)
    if lora:
        add_lora(model, lora)
    shard(model, blocks_of(model), ranks, dtype)
    model.to_empty(device=device)
    _make_buffers(model, device)
    load_rows(model, checkpoint, known_as=name_in_base if lora else None)
    return model


def _make_buffers(model: Any, device: torch.device) -> None:
    """Compute what is in no checkpoint, such as the frequencies of the rotary embedding.

    Raises ConfigurationError for a module of which only its own code knows how.
    """
    for name, module in model.named_modules():
        if not module._non_persistent_buffers_set:
            continue
        if not hasattr(module, "config"):
            raise ConfigurationError(f"model.name: {name} of this model cannot be made anew in several processes")
        fresh = type(module)(config=module.config)
        for buffer in module._non_persistent_buffers_set:
            setattr(module, buffer, getattr(fresh, buffer).to(device))


def install_forward(model: nn.Module, temperature: float, dtype: torch.dtype, *, autocast: bool = True) -> None:
    """Make `packed_forward` the forward of a model, `model(batch, loss)`, and its layers lean.

    `autocast`: float32 weights compute in `dtype`; FSDP gathers them in it anyway.
    """
    config = cast(Any, model).config.get_text_config()
    how = Projection(temperature, *_scale_and_cap(config))

    def forward(self: Any, batch: MicroBatch, loss: TokenLoss | None = None) -> TokenOutput:
        return packed_forward(self, batch, how, dtype, loss, autocast=autocast)

    make_lean(model)
    model.forward = MethodType(forward, model)


def packed_forward(
    model: Any,
    batch: MicroBatch,
    how: Projection,
    dtype: torch.dtype,
    loss: TokenLoss | None = None,
    *,
    autocast: bool = True,
) -> TokenOutput:
    """Log-probabilities of the sampled tokens of a packed row; with a `loss`, its gradient too.

    Only tokens that predict a sampled token go through the vocabulary projection, the costliest layer of a small model.
    """
    head = model.get_output_embeddings()
    with torch.autocast(batch.input_ids.device.type, dtype=dtype, enabled=autocast and dtype != torch.float32):
        hidden = model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            layout=batch.layout,
            use_cache=False,
        ).last_hidden_state[0]
        chosen = hidden.index_select(0, batch.positions).to(dtype)
    bias: Tensor | None = getattr(head, "bias", None)
    if loss is None:
        return TokenOutput(token_logprobs(chosen, head.weight, bias, batch.targets, how))
    return token_loss(chosen, head.weight, bias, batch.targets, how, loss)


def blocks_of(model: Any) -> nn.ModuleList:
    """The layers of a transformer, lowest first."""
    for module in model.base_model.children():
        if isinstance(module, nn.ModuleList):
            return module
    raise TrainingError(f"cannot find the layers of {type(model).__name__}; set optimizer.frozen_layers = 0")


def own_logprobs(model: Any, device: torch.device) -> Tensor:
    """Log-probabilities of two sequences that share a prompt, by the model's own forward and attention."""
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    ids = torch.tensor([sequence.token_ids for sequence in _probe(model)], device=device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    model.set_attn_implementation(PACKED)
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, ids[:, 1:, None]).flatten()


def check_forward(model: Any, expected: Tensor, device: torch.device, tolerance: float = _TOLERANCE_NATS) -> None:
    """Compare `packed_forward` with what `own_logprobs` was before the model's forward was replaced.

    What a model does to its logits (a cap, a factor) or to its attention is in its own code and in no interface; a
    model with a peculiarity that is not known here must not be trained on other log-probabilities than it samples with.

    Raises ConfigurationError if they differ.
    """
    batch = collate(_probe(model), [0, 1], [0.0, 0.0], device)
    with torch.no_grad():
        how = Projection(1.0, *_scale_and_cap(model.config.get_text_config()))
        found = packed_forward(model, batch, how, torch.float32).logprobs
    difference = float((found - expected).abs().max())
    if not difference <= tolerance:
        raise ConfigurationError(
            f"model.name: the learner's log-probabilities of {type(model).__name__} are up to {difference:.2g} nats "
            "away from the model's own: it computes in a way that the learner does not know, and cannot be trained"
        )


def _probe(model: Any) -> list[TrainingSequence]:
    """Two made-up sequences with the same prompt."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    prompt, *answers = torch.randint(vocabulary, (3, _PROBE_TOKENS), generator=generator).tolist()
    whole = range(1, 2 * _PROBE_TOKENS)
    logprobs = [0.0] * len(whole)
    return [TrainingSequence(prompt + each, [*whole], logprobs, prompt_length=_PROBE_TOKENS) for each in answers]


def _scale_and_cap(config: Any) -> tuple[float, float | None]:
    """What a family of models does to its logits, by the names in its configuration."""
    scale = 1.0
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        scale /= divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        scale *= factor
    return scale, getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3n
