"""From rewards to advantages: the rules, as pure functions of numbers. Which episodes they see is `advantages.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch

STD_EPSILON = 1e-6
_VARIANCE_EPSILON = 1e-8  # verl's, where it whitens


def group_advantages(rewards: Sequence[float], *, scaled: bool = True) -> list[float] | None:
    """(r - mean) / (std + 1e-6) within one group (ReSearch, eq. 2; std with Bessel's correction, as in verl and TRL).

    Without `scaled` they are r - mean (Dr. GRPO, https://arxiv.org/abs/2503.20783): a group in which only the format
    made a difference (0.1) then counts a tenth of one in which the answer did.
    None if the group carries no signal, because all its rewards are equal.
    """
    values = torch.tensor(rewards, dtype=torch.float64)
    if len(rewards) < 2 or bool((values == values[0]).all()):
        return None
    centred = values - values.mean()
    advantages: list[float] = (centred / (values.std() + STD_EPSILON) if scaled else centred).tolist()
    return advantages


def leave_one_out_advantages(rewards: Sequence[float], *, scaled: bool = False) -> list[float] | None:
    """Each reward minus the mean of the others of its group (RLOO, https://arxiv.org/abs/2402.14740).

    It is `group_advantages` times n / (n - 1). None if the group carries no signal.
    """
    advantages = group_advantages(rewards, scaled=scaled)
    if advantages is None:
        return None
    return [advantage * len(rewards) / (len(rewards) - 1) for advantage in advantages]


def tree_advantages(
    rewards: Sequence[float],
    trees: Sequence[Hashable],
    of_group: Callable[[Sequence[float]], list[float] | None],
) -> list[float] | None:
    """What each gets in its group, plus what it gets in its tree (Tree-GRPO, https://arxiv.org/abs/2509.21240).

    Within a tree these sum to zero, so that tokens which a whole tree shares get what its mean is worth in the group,
    and those after a branch also what it was worth to go that way. Without branches the group's part is all. So is it
    for a tree of one (the authors' code adds the bare reward there), or one of equal rewards.
    None if the group carries no signal.

    Args:
        rewards: of the members of a group.
        trees: which tree each belongs to.
        of_group: from rewards to advantages; None without signal.
    """
    advantages = of_group(rewards)
    if advantages is None:
        return None
    for tree in (tree for tree, count in Counter(trees).items() if count > 1):
        own = [index for index, its in enumerate(trees) if its == tree]
        for index, within in zip(own, of_group([rewards[index] for index in own]) or [], strict=False):
            advantages[index] += within
    return advantages


def batch_advantages(values: Sequence[float], lengths: Sequence[int], *, scaled: bool = True) -> list[float]:
    """(v - mean) / sqrt(variance + 1e-8) over all tokens of a batch (REINFORCE++, https://arxiv.org/abs/2501.03262).

    Args:
        values: of each episode, its reward or its reward minus the mean of its group; each of its tokens has it.
        lengths: sampled tokens of each episode, by which it counts in mean and variance (with Bessel's correction).
        scaled: whether to divide.
    """
    own, tokens = torch.tensor(values, dtype=torch.float64), torch.tensor(lengths, dtype=torch.float64)
    total = tokens.sum()
    centred = own - (own * tokens).sum() / total
    variance = (centred.square() * tokens).sum() / (total - 1).clamp(min=1)
    advantages: list[float] = (centred * torch.rsqrt(variance + _VARIANCE_EPSILON) if scaled else centred).tolist()
    return advantages


def keep_most_varied(rewards: Sequence[float], keep: int) -> list[int]:
    """Indexes, in order, of the `keep` episodes of a group whose rewards vary most (PODS, https://arxiv.org/abs/2504.13818).

    They are always some of the best and some of the worst (theorem 1 there); of equally varied subsets the most even
    cut is taken, and of equal rewards the earlier ones among the worst and the later ones among the best.
    """
    order = sorted(range(len(rewards)), key=lambda i: (rewards[i], i))
    if keep >= len(order):
        return list(range(len(order)))

    def subset(worst: int) -> list[int]:
        return order[:worst] + order[len(order) - (keep - worst) :]

    def merit(worst: int) -> tuple[float, int]:
        chosen = [rewards[i] for i in subset(worst)]
        mean = sum(chosen) / keep
        # Rounded: two subsets with the same rewards must tie, whatever the order of the sum.
        return round(sum((reward - mean) ** 2 for reward in chosen), 12), -abs(2 * worst - keep)

    return sorted(subset(max(range(keep + 1), key=merit)))
