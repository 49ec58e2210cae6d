"""From episodes to the learner's input: token sequences, packed into rows without padding by a token budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from research.episode.agent import Episode
from services.trainer.model.attention import Layout


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One episode as tokens; `sampler_logprobs[i]` and `advantages[i]` belong to the i-th *sampled* token.

    Where nothing asks for advantages, in the supervised phase, there are none. The first `prompt_length` tokens are
    the prompt, by which the sequences of one question are known. `right`: its answer is, and it is reinforced.
    """

    token_ids: list[int]
    sampled_positions: list[int]
    sampler_logprobs: list[float]
    advantages: list[float] = field(default_factory=list)
    prompt_length: int = 0
    right: bool = False

    @property
    def sampled_tokens(self) -> int:
        return len(self.sampled_positions)


def sequence_of(episode: Episode, advantages: Sequence[float] = (), *, right: bool = False) -> TrainingSequence:
    """Prompt and response as one sequence, with the positions and the advantages of the sampled tokens."""
    offset = len(episode.prompt_ids)
    return TrainingSequence(
        token_ids=episode.prompt_ids + episode.token_ids,
        sampled_positions=[offset + i for i, sampled in enumerate(episode.sampled) if sampled],
        sampler_logprobs=[lp for lp, sampled in zip(episode.logprobs, episode.sampled, strict=True) if sampled],
        advantages=[*advantages],
        prompt_length=offset,
        right=right,
    )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Several sequences in one row of T tokens, without padding, and with each shared prefix once.

    Flat tensors [N] run over the sampled tokens, over sequences in the order of `members` and over positions within
    each. `lengths` says how many tokens of each sequence they have, which is always all; `right` marks those of right
    sequences. `positions` point at the tokens of the row that *predict* them; several point at the last token of a
    prefix that is shared. Hidden states depend only on the tokens before, so sharing them changes no number.
    """

    members: list[int]
    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    positions: Tensor
    targets: Tensor
    sampler_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    right: Tensor
    lengths: list[int]


def pack_micro_batches(
    sequences: Sequence[TrainingSequence], token_budget: int, *, share_prefixes: bool = True
) -> list[list[int]]:
    """Group sequence indexes so that each group has at most `token_budget` tokens (a longer one gets its own group).

    A prefix that several sequences of a group share counts once; for that they are taken in lexicographic order.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].token_ids)
    groups: list[list[int]] = []
    tokens = 0
    for index in order:
        own = sequences[index].token_ids
        added = len(own)
        if groups and share_prefixes:
            added -= common_prefix(sequences[groups[-1][-1]].token_ids, own)
        if groups and tokens + added <= token_budget:
            groups[-1].append(index)
            tokens += added
        else:
            groups.append([index])
            tokens = len(own)
    return groups


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    for number, (own, other) in enumerate(zip(left, right, strict=False)):
        if own != other:
            return number
    return min(len(left), len(right))


def prompt_groups(sequences: Sequence[TrainingSequence]) -> list[list[int]]:
    """Indexes of the sequences by equal prompt, in order of their first."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, sequence in enumerate(sequences):
        groups[tuple(sequence.token_ids[: sequence.prompt_length]) or (-1, index)].append(index)
    return list(groups.values())


_NOTHING = TrainingSequence([0], [], [])


@dataclass(slots=True)
class _Row:
    """A packed row as it grows: `own[i]` are the indexes in the row of all tokens of the i-th sequence."""

    token_ids: list[int]
    position_ids: list[int]
    own: list[list[int]]

    def add(self, token_ids: list[int], shared: int) -> None:
        """Add a sequence of which the first `shared` tokens are those of the sequence before."""
        start, added = len(self.token_ids), token_ids[shared:]
        prefix = self.own[-1][:shared] if shared else []
        self.own.append(prefix + list(range(start, start + len(added))))
        self.token_ids += added
        self.position_ids += range(shared, len(token_ids))

    def layout(self, device: torch.device) -> Layout:
        # A piece ends wherever a sequence leaves the row's order, and where the tokens that it adds end.
        ends = {len(self.token_ids)}
        for own in self.own:
            ends |= {a + 1 for a, b in pairwise(own) if b != a + 1} | {b for a, b in pairwise(own) if b != a + 1}
            ends |= {own[0], own[-1] + 1}
        cuts = sorted(ends | {0})
        first = {start: piece for piece, start in enumerate(cuts[:-1])}
        paths = [[first[index] for index in own if index in first] for own in self.own]
        return Layout.of([b - a for a, b in pairwise(cuts)], paths, device)


def collate(
    sequences: Sequence[TrainingSequence],
    members: list[int],
    weights: Sequence[float],
    device: torch.device,
    *,
    share_prefixes: bool = True,
) -> MicroBatch:
    """Put the members of one micro-batch into one row; each shares what it can with the member before.

    A micro-batch of nobody is one token of which nothing is asked: a rank without work must gather with the others.
    """
    chosen = [sequences[i] for i in members] or [_NOTHING]
    # 1. Lay out the row.
    row = _Row([], [], [])
    for number, sequence in enumerate(chosen):
        before = chosen[number - 1].token_ids if number and share_prefixes else []
        row.add(sequence.token_ids, common_prefix(before, sequence.token_ids))
    # 2. Point at the tokens that predict the sampled ones: the logits at position p - 1 predict the token at p.
    positions = [own[p - 1] for own, s in zip(row.own, chosen, strict=True) for p in s.sampled_positions]
    targets = [s.token_ids[p] for s in chosen for p in s.sampled_positions]

    # 3. Line up what belongs to each sampled token; an episode's weight is that of each of them.
    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return MicroBatch(
        members=members,
        input_ids=torch.tensor(row.token_ids, device=device),
        position_ids=torch.tensor(row.position_ids, device=device),
        layout=row.layout(device),
        positions=torch.tensor(positions, dtype=torch.long, device=device),
        targets=torch.tensor(targets, dtype=torch.long, device=device),
        sampler_logprobs=floats([logprob for s in chosen for logprob in s.sampler_logprobs]),
        advantages=floats([advantage for s in chosen for advantage in s.advantages]),
        weights=floats([weights[i] for i, s in zip(members, chosen, strict=False) for _ in s.sampled_positions]),
        right=torch.tensor([s.right for s in chosen for _ in s.sampled_positions], dtype=torch.bool, device=device),
        lengths=[s.sampled_tokens for s in chosen],
    )
