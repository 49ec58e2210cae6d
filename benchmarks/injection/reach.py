"""Whether the retriever finds the added passages, asked as a good searcher would and with the question itself."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.injection.kinds import KINDS
from benchmarks.injection.passages import Attack
from research.clients import RetrieverClient
from research.markdown import markdown_table
from research.scoring.statistics import wilson

_DEEPEST = 5


async def ranks(attacks: Sequence[Attack], port: int) -> list[tuple[int | None, int | None]]:
    """The rank of each hostile passage, from 1, for its search and for its question; None beyond the fifth."""
    async with RetrieverClient(f"http://127.0.0.1:{port}") as retriever:

        async def rank(query: str, own: str) -> int | None:
            found = [passage.id for passage in await retriever.search(query, _DEEPEST)]
            return found.index(own) + 1 if own in found else None

        return [
            (await rank(attack.question.hops[0].query, own), await rank(attack.question.text, own))
            for attack, own in ((attack, attack.hostile.id) for attack in attacks)
        ]


def table(attacks: Sequence[Attack], found: Sequence[tuple[int | None, int | None]]) -> str:
    """Shares by kind, and with Wilson's interval over all."""
    rows = []
    for name in (*(kind.name for kind in KINDS), "all"):
        own = [pair for attack, pair in zip(attacks, found, strict=True) if name in (attack.kind.name, "all")]
        row = [name]
        for which in (0, 1):
            for deepest in (1, _DEEPEST):
                hits = sum((pair[which] or _DEEPEST + 1) <= deepest for pair in own)
                share = wilson(hits, len(own))
                row.append(f"{share.mean:.2f} ({share.low:.2f} to {share.high:.2f})" if name == "all" else str(hits))
        rows.append(row)
    return markdown_table(["kind", "first, by search", "in five", "first, by question", "in five"], rows)
