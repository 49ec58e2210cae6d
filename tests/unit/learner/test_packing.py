"""Packed rows with shared prompts against the plain forward of each episode: values, gradients, any cut of a batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from services.trainer.learner.learner import Learner
from services.trainer.learner.update import SupervisedTokenLoss
from services.trainer.model.batching import TrainingSequence, collate, pack_micro_batches
from services.trainer.model.forward import load_model
from services.trainer.model.head import chunks
from tests.support.tiny_model import VOCABULARY, flat_parameters, tiny_settings, write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def group_of(size: int, seed: int, prompt_length: int = 7) -> list[TrainingSequence]:
    """Episodes of one question: one prompt, then tokens of which some are sampled, the first one always."""
    rng = random.Random(seed)
    prompt = [rng.randrange(VOCABULARY) for _ in range(prompt_length)]
    made = []
    for _ in range(size):
        length = rng.randint(3, 12)
        positions = sorted({prompt_length, *(prompt_length + i for i in rng.sample(range(length), length // 2))})
        ids = prompt + [rng.randrange(VOCABULARY) for _ in range(length)]
        made.append(
            TrainingSequence(
                ids, positions, [-4.0] * len(positions), [rng.choice([1.0, -1.0, 0.5])] * len(positions), prompt_length
            )
        )
    return made


def plain(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")


def plain_loss(model: Any, sequences: list[TrainingSequence]) -> torch.Tensor:
    """Mean negative log-likelihood of the sampled tokens, each episode in a forward pass of its own."""
    total, count = torch.zeros(()), 0
    for sequence in sequences:
        table = torch.log_softmax(model(torch.tensor([sequence.token_ids])).logits[0], dim=-1)
        for position in sequence.sampled_positions:
            total = total - table[position - 1, sequence.token_ids[position]]
            count += 1
    return total / count


@pytest.mark.parametrize("share", [True, False])
def test_loss_and_gradient_are_those_of_plain_forwards(tiny: Path, share: bool) -> None:
    sequences = [*group_of(3, seed=1), *group_of(1, seed=2), *group_of(2, seed=3, prompt_length=5)]
    count = sum(s.sampled_tokens for s in sequences)
    model, reference = load_model(tiny, CPU, 1.0, torch.float32), plain(tiny)
    batch = collate(sequences, list(range(6)), [1 / count] * 6, CPU, share_prefixes=share)
    output = model(batch, SupervisedTokenLoss(batch, torch.ones(())))
    expected = plain_loss(reference, sequences)
    torch.testing.assert_close(output.loss, expected.detach(), rtol=1e-5, atol=1e-6)
    output.loss.backward()
    expected.backward()
    for (name, own), (_, other) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_shared_prompt_is_in_the_row_once() -> None:
    sequences = group_of(4, seed=1)
    batch = collate(sequences, [0, 1, 2, 3], [1.0] * 4, CPU)
    own = sum(len(s.token_ids) - 7 for s in sequences)
    assert len(batch.input_ids) == 7 + own
    assert len(collate(sequences, [0, 1, 2, 3], [1.0] * 4, CPU, share_prefixes=False).input_ids) == 4 * 7 + own
    assert batch.position_ids[:7].tolist() == list(range(7))
    assert batch.position_ids[len(sequences[0].token_ids)].item() == 7  # each continues after the prompt
    ends = [int(batch.positions[sum(s.sampled_tokens for s in sequences[:i])]) for i in range(4)]
    assert ends == [6] * 4  # the end of the prompt predicts the first token of each


def of_tokens(*texts: str) -> list[TrainingSequence]:
    """Sequences of one token per letter, all but the first sampled."""
    rows = [[ord(letter) % VOCABULARY for letter in text] for text in texts]
    return [TrainingSequence(row, list(range(1, len(row))), [-4.0] * (len(row) - 1), prompt_length=1) for row in rows]


TREES = [
    ("abcde", "abcxy", "abcxz", "abq"),  # three levels, and back
    ("abc", "abc", "abc"),  # equal ones
    ("ab", "abcd", "abcdef"),  # each the prefix of the next
    ("abcd", "ab"),  # a prefix of the one before adds nothing
    ("abcd", "wxyz", "abzz"),  # what is shared, but not with the one before, stands twice
    ("a" * 9, "a" * 5 + "b", "a" * 5 + "bc", "a" * 2),
]


@pytest.mark.parametrize("texts", TREES)
def test_any_tree_of_prefixes_is_computed_as_its_sequences_are(tiny: Path, texts: tuple[str, ...]) -> None:
    sequences = of_tokens(*texts)
    weight = 1 / sum(s.sampled_tokens for s in sequences)
    model, reference = load_model(tiny, CPU, 1.0, torch.float32), plain(tiny)
    batch = collate(sequences, list(range(len(texts))), [weight] * len(texts), CPU)
    output = model(batch, SupervisedTokenLoss(batch, torch.ones(())))
    expected = plain_loss(reference, sequences)
    torch.testing.assert_close(output.loss, expected.detach(), rtol=1e-5, atol=1e-6)
    output.loss.backward()
    expected.backward()
    for (name, own), (_, other) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("texts", TREES)
def test_what_varlen_attention_is_given_is_each_sequence_whole(texts: tuple[str, ...]) -> None:
    """The indexes that are used on CUDA, where no test runs here: gathered, each sequence is whole; kept, the row."""
    sequences = of_tokens(*texts)
    batch = collate(sequences, list(range(len(texts))), [1.0] * len(texts), CPU)
    layout, row = batch.layout, batch.input_ids
    gathered = row if layout.gather is None else row[layout.gather]
    found = [gathered[a:b].tolist() for a, b in zip(layout.bounds[:-1], layout.bounds[1:], strict=True)]
    assert found == [s.token_ids for s in sequences]
    assert layout.keep is None or torch.equal(gathered[layout.keep], row)
    assert layout.longest == max(len(s.token_ids) for s in sequences)
    assert sum(layout.pieces) == len(row)
    assert min(layout.pieces) > 0


LENGTHS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=12)


@given(LENGTHS, st.integers(1, 100), st.booleans())
def test_micro_batches_hold_everything_once_within_the_budget(
    members: list[tuple[int, int]], budget: int, share: bool
) -> None:
    sequences = [TrainingSequence([group] * 6 + [9] * length, [], [], prompt_length=6) for group, length in members]
    bins = pack_micro_batches(sequences, budget, share_prefixes=share)
    assert sorted(i for each in bins for i in each) == list(range(len(members)))
    for each in bins:
        tokens = len(collate(sequences, each, [1.0] * len(members), CPU, share_prefixes=share).input_ids)
        assert len(each) == 1 or tokens <= budget


@given(st.integers(1, 5000), st.sampled_from([60, 49_152, 152_064]))
def test_chunks_cover_every_token_once(tokens: int, vocabulary: int) -> None:
    parts = list(chunks(tokens, vocabulary, CPU))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(tokens))
    assert all((part.stop - part.start) * vocabulary <= 2**24 for part in parts)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 200), st.sampled_from(["token", "sequence"]))
@settings(max_examples=15, deadline=None)
def test_no_cut_and_no_packing_changes_an_update(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, sizes: list[int], budget: int, normalization: str
) -> None:
    sequences = [s for number, size in enumerate(sizes) for s in group_of(size, seed=number)]
    after = []
    for tokens in (budget, 10_000):
        overrides = (f"optimizer.micro_batch_tokens={tokens}", f"grpo.loss_aggregation={normalization}")
        learner = Learner(tiny_settings(tmp_path_factory.getbasetemp(), *overrides), tiny)
        before = flat_parameters(learner.model)
        assert learner.grpo_update(sequences) is not None
        after.append(flat_parameters(learner.model) - before)
    torch.testing.assert_close(after[0], after[1], rtol=1e-3, atol=1e-5)
