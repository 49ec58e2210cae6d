"""Whether the searches of a question find their passages and answers in the retriever as it is served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from builtin.questions.extract.article import stands_in
from research.questions.model import Hop

LEAST_MARGIN = 0.02
"""Minimum lead of the best passage over the next, in cosine similarity.

An encoder in int8 scales each batch as a whole, so a score depends on what else is searched at the same time: the
lead of the best passage moves by 0.0025 on average and moved by 0.015 at most (benchmarks/query_noise.py).
"""


@dataclass(frozen=True, slots=True)
class Found:
    """The best passage for a query: its title, its text as an episode shows it, and its lead over the next passage."""

    title: str
    shown: str
    margin: float


Search = Callable[[Sequence[str]], Sequence[Found]]
"""Finds the best passage of each query."""


def reached(hops: Sequence[Hop], search: Search) -> list[bool]:
    """For each hop, whether its query ranks its passage first by a clear margin, and the answer is shown."""
    queries = list(dict.fromkeys(hop.query for hop in hops))
    found = dict(zip(queries, search(queries), strict=True))
    return [_leads_there(hop, found[hop.query]) for hop in hops]


def _leads_there(hop: Hop, found: Found) -> bool:
    shown = f"{found.title}\n{found.shown}"
    return (
        found.title == hop.title
        and found.margin >= LEAST_MARGIN
        and stands_in(hop.answer, shown)
        and (not hop.beside or stands_in(hop.beside, shown))
    )
