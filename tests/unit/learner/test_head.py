"""The chunked projection and loss against full logits in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from services.trainer.model import head
from services.trainer.model.head import Projection, token_logprobs, token_loss

TOKENS, HIDDEN, VOCABULARY = 37, 8, 50


@dataclass(frozen=True)
class Mixed:
    """A loss that is not linear in the log-probabilities and asks for the entropy, as GRPO's is."""

    weights: Tensor
    needs_entropy: bool

    def __call__(self, logprobs: Tensor, entropy: Tensor | None, part: slice) -> Tensor:
        loss = (self.weights[part] * torch.exp(logprobs + 3)).sum()
        return loss if entropy is None else loss - 0.3 * (self.weights[part] * entropy).sum()


def inputs(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (
        torch.randn(TOKENS, HIDDEN, generator=generator),
        torch.randn(VOCABULARY, HIDDEN, generator=generator),
    )
    bias, weights = torch.randn(VOCABULARY, generator=generator), torch.rand(TOKENS, generator=generator)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets, weights.to(dtype)


def full(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, how: Projection) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of full logits, in the dtype of the input."""
    logits = (hidden @ weight.T + bias) * how.scale
    if how.softcap:
        logits = how.softcap * torch.tanh(logits / how.softcap)
    table = torch.log_softmax(logits / how.temperature, dim=-1)
    return table.gather(-1, targets[:, None]).squeeze(-1), -(table.exp() * table).sum(-1)


@pytest.fixture(params=[50, 50 * 7, 2**24], ids=["one token each", "seven each", "all at once"], autouse=True)
def elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CPU_ELEMENTS", request.param)


@pytest.mark.parametrize("needs_entropy", [False, True])
@pytest.mark.parametrize("how", [Projection(), Projection(0.7), Projection(1.3, 0.25, 5.0)])
def test_values_and_gradients_equal_full_logits_in_float64(how: Projection, needs_entropy: bool) -> None:
    hidden, weight, bias, targets, weights = inputs(1)
    own = tuple(tensor.clone().requires_grad_() for tensor in (hidden, weight, bias))
    output = token_loss(own[0], own[1], own[2], targets, how, Mixed(weights, needs_entropy))
    assert output.loss is not None
    (2.5 * output.loss).backward()

    exact = tuple(tensor.double().requires_grad_() for tensor in (hidden, weight, bias))
    logprobs, entropy = full(exact[0], exact[1], exact[2], targets, how)
    loss = Mixed(weights.double(), needs_entropy)(logprobs, entropy if needs_entropy else None, slice(None))
    (2.5 * loss).backward()

    torch.testing.assert_close(output.logprobs.double(), logprobs.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss.double(), loss, rtol=1e-5, atol=1e-6)
    for mine, reference in zip(own, exact, strict=True):
        assert mine.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(mine.grad, reference.grad.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        token_logprobs(hidden, weight, bias, targets, how).double(), logprobs.detach(), rtol=1e-5, atol=1e-5
    )
    if needs_entropy:
        assert output.entropy_tokens == TOKENS
        assert output.entropy_sum == pytest.approx(float(entropy.sum().detach()), rel=1e-4)
    else:
        assert 0 < output.entropy_tokens <= TOKENS
        assert 0 < output.entropy_sum / output.entropy_tokens < torch.log(torch.tensor(VOCABULARY))


def test_a_frozen_projection_gets_no_gradient() -> None:
    hidden, weight, _, targets, weights = inputs(2)
    hidden.requires_grad_()
    output = token_loss(hidden, weight, None, targets, Projection(), Mixed(weights, False))
    assert output.loss is not None
    output.loss.backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_half_precision_adds_up_in_float32() -> None:
    """The products round to bf16, as under autocast; what they are added to does not."""
    hidden, weight, bias, targets, weights = inputs(3)
    own_hidden, own_weight = hidden.bfloat16().requires_grad_(), weight.clone().requires_grad_()
    output = token_loss(own_hidden, own_weight, bias, targets, Projection(), Mixed(weights, False))
    assert output.loss is not None
    output.loss.backward()
    assert own_hidden.grad is not None
    assert own_weight.grad is not None
    assert own_hidden.grad.dtype == torch.bfloat16
    assert own_weight.grad.dtype == torch.float32
    exact = weight.double().requires_grad_()
    logprobs, _ = full(hidden.double(), exact, bias.double(), targets, Projection())
    Mixed(weights.double(), False)(logprobs, None, slice(None)).backward()
    assert exact.grad is not None
    assert (
        torch.nn.functional.cosine_similarity(own_weight.grad.double().flatten(), exact.grad.flatten(), dim=0) > 0.999
    )


def test_no_token_at_all_is_no_fault() -> None:
    hidden, weight, bias, targets, weights = inputs(4)
    none = slice(0, 0)
    output = token_loss(
        hidden[none].requires_grad_(), weight, bias, targets[none], Projection(), Mixed(weights[none], False)
    )
    assert output.loss is not None
    output.loss.backward()
    assert output.loss.item() == 0
    assert len(output.logprobs) == 0
