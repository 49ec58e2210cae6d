"""From episodes to the learner's input: token sequences, packed into micro-batches by a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from research.episode.agent import Episode


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One episode as tokens; `sampler_logprobs[i]` belongs to the i-th *sampled* token."""

    token_ids: list[int]
    sampled_positions: list[int]
    sampler_logprobs: list[float]
    advantage: float = 1.0

    @property
    def sampled_tokens(self) -> int:
        return len(self.sampled_positions)


def sequence_of(episode: Episode, advantage: float = 1.0) -> TrainingSequence:
    """Prompt and response as one sequence, with the positions of the sampled tokens."""
    offset = len(episode.prompt_ids)
    return TrainingSequence(
        token_ids=episode.prompt_ids + episode.token_ids,
        sampled_positions=[offset + i for i, sampled in enumerate(episode.sampled) if sampled],
        sampler_logprobs=[lp for lp, sampled in zip(episode.logprobs, episode.sampled, strict=True) if sampled],
        advantage=advantage,
    )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B padded sequences of length T; `rows`/`columns` [N] point at the positions that *predict* the sampled tokens.

    Flat tensors run over sequences in the order of `members`, and over positions within each.
    """

    members: list[int]
    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    sampler_logprobs: Tensor
    advantages: Tensor
    weights: Tensor


def pack_micro_batches(sequences: Sequence[TrainingSequence], token_budget: int) -> list[list[int]]:
    """Group sequence indexes so that rows x longest row stays within the budget (a longer row gets its own group)."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].token_ids))
    groups: list[list[int]] = []
    for index in order:
        if groups and len(sequences[groups[-1][0]].token_ids) * (len(groups[-1]) + 1) <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def collate(
    sequences: Sequence[TrainingSequence], members: list[int], weights: Sequence[float], device: torch.device
) -> MicroBatch:
    """Pad the members of one micro-batch on the right."""
    # 1. Pad the rows.
    chosen = [sequences[i] for i in members]
    longest = max(len(s.token_ids) for s in chosen)
    input_ids = torch.zeros(len(chosen), longest, dtype=torch.long)
    attention_mask = torch.zeros(len(chosen), longest, dtype=torch.long)
    for row, sequence in enumerate(chosen):
        input_ids[row, : len(sequence.token_ids)] = torch.tensor(sequence.token_ids)
        attention_mask[row, : len(sequence.token_ids)] = 1
    # 2. Index the sampled tokens: the logits at position p - 1 predict the token at p.
    positions = [(row, p) for row, s in enumerate(chosen) for p in s.sampled_positions]
    rows = torch.tensor([row for row, _ in positions])
    columns = torch.tensor([p - 1 for _, p in positions])

    # 3. Repeat each episode's advantage and weight for its sampled tokens.
    def per_token(values: Sequence[float]) -> Tensor:
        spread = [value for value, s in zip(values, chosen, strict=True) for _ in s.sampled_positions]
        return torch.tensor(spread, dtype=torch.float32, device=device)

    return MicroBatch(
        members=members,
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        rows=rows.to(device),
        columns=columns.to(device),
        targets=input_ids[rows, columns + 1].to(device),
        sampler_logprobs=torch.tensor(
            [b for s in chosen for b in s.sampler_logprobs], dtype=torch.float32, device=device
        ),
        advantages=per_token([s.advantage for s in chosen]),
        weights=per_token([weights[i] for i in members]),
    )
