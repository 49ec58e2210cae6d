"""The vocabulary projection and the loss, in chunks of tokens: no logits of a whole batch ever exist.

With N tokens, hidden size H and vocabulary V, full logits take N x V numbers several times over (for Qwen2.5, V is
152,064). Here each chunk's loss and gradient are computed while its logits exist, so that nothing is computed twice:
what is kept is the gradient of the hidden states [N, H] and of the projection [V, H] (as Liger's fused linear
cross-entropy does, https://arxiv.org/abs/2410.10989, for a loss that is any function of log-probabilities and entropy).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

# Elements of a chunk's logits: 64 MiB in float32 on a CPU, 256 MiB on a GPU, where small products are slow.
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**24, 2**26
# Entropy that only the log asks for is computed in every so many chunks.
ENTROPY_EVERY = 4


@dataclass(frozen=True, slots=True)
class Projection:
    """From a hidden state to the distribution that the sampler drew from.

    Attributes:
        temperature: logits are divided by it, last.
        scale: logits are multiplied by it, first (Granite, Cohere).
        softcap: then they are replaced by cap x tanh(logits / cap) (Gemma); None: they are not.
    """

    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, raw: Tensor) -> Tensor:
        """[..., V] from the projection's output to float32 logits of the sampled distribution."""
        logits = raw.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature if self.temperature != 1.0 else logits


class TokenLoss(Protocol):
    """A weighted sum over tokens; called with consecutive chunks of them.

    `part` says which tokens of the batch they are. `entropy` is there if the loss said that it needs it, and has a
    gradient then.
    """

    @property
    def needs_entropy(self) -> bool: ...

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, part: slice) -> Tensor: ...


class TokenOutput(NamedTuple):
    """What a batch of N sampled tokens came to (a tuple, so that FSDP finds the tensors in it).

    Attributes:
        logprobs: [N] float32, without gradient.
        loss: a scalar with a gradient; None if no loss was asked for.
        entropy_sum: of the tokens whose entropy was computed, in nats; `entropy_tokens` is their number.
    """

    logprobs: Tensor
    loss: Tensor | None = None
    entropy_sum: float = 0.0
    entropy_tokens: int = 0


def chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Consecutive slices over the tokens, each with logits of at most the device's number of elements."""
    size = max(1, (_CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS) // vocabulary)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


def token_logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: Projection) -> Tensor:
    """[N] log-probabilities of `targets` [N] after `hidden` [N, H], without gradient."""
    found = [hidden.new_empty(0, dtype=torch.float32)]
    with torch.no_grad():
        weight, bias = _as(weight, hidden), _as(bias, hidden) if bias is not None else None
        for part in chunks(len(targets), len(weight), hidden.device):
            logits = how.logits(linear(hidden[part], weight, bias))
            found.append(_of_targets(logits, targets[part]) - torch.logsumexp(logits, dim=-1))
    return torch.cat(found)


def token_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: Projection, loss: TokenLoss
) -> TokenOutput:
    """Log-probabilities and the loss, whose gradient reaches `hidden`, `weight` and `bias`."""
    report = _Report()
    total, logprobs = _ChunkedLoss.apply(hidden, weight, bias, targets, how, loss, report)  # type: ignore[no-untyped-call]
    return TokenOutput(logprobs, total, report.entropy_sum, report.entropy_tokens)


@dataclass(slots=True)
class _Report:
    entropy_sum: float = 0.0
    entropy_tokens: int = 0


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradient in its forward, where the logits are; its backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        how: Projection,
        loss: TokenLoss,
        report: _Report,
    ) -> tuple[Tensor, Tensor]:
        own, own_bias = _as(weight, hidden), _as(bias, hidden) if bias is not None else None
        total = hidden.new_zeros((), dtype=torch.float32)
        logprobs = hidden.new_zeros(len(targets), dtype=torch.float32)
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight) if weight.requires_grad else None
        to_bias = torch.zeros_like(bias) if bias is not None and bias.requires_grad else None
        for number, part in enumerate(chunks(len(targets), len(own), hidden.device)):
            raw = linear(hidden[part], own, own_bias).detach().requires_grad_()
            with torch.enable_grad():
                logits = how.logits(raw)
                normalizer = torch.logsumexp(logits, dim=-1)
                found = _of_targets(logits, targets[part]) - normalizer
                entropy = None
                if loss.needs_entropy:
                    entropy = _entropy(logits, normalizer)
                elif number % ENTROPY_EVERY == 0:
                    with torch.no_grad():
                        _note(report, _entropy(logits, normalizer))
                of_chunk = loss(found, entropy, part)
            if entropy is not None:
                _note(report, entropy.detach())
            (to_raw,) = torch.autograd.grad(of_chunk, raw)
            total += of_chunk.detach()
            logprobs[part] = found.detach()
            to_hidden[part] = to_raw @ own
            if to_weight is not None:
                _add_product(to_weight, to_raw, hidden[part])
            if to_bias is not None:
                to_bias += to_raw.sum(0)
        ctx.save_for_backward(to_hidden, to_weight, to_bias)
        ctx.mark_non_differentiable(logprobs)
        return total, logprobs

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # In place: nobody else has them, and a second [V, H] would be as large as the projection.
        scaled = (None if each is None else each.mul_(of_total) for each in ctx.saved_tensors)
        return (*scaled, None, None, None, None)


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.dtype)


def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(-1, targets[:, None]).squeeze(-1)


def _entropy(logits: Tensor, normalizer: Tensor) -> Tensor:
    return normalizer - (torch.exp(logits - normalizer[:, None]) * logits).sum(-1)


def _note(report: _Report, entropy: Tensor) -> None:
    report.entropy_sum += float(entropy.sum())
    report.entropy_tokens += len(entropy)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [V, H] += left [N, V] transposed x right [N, H]; in place, so that no second [V, H] exists."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total += left.t() @ right
